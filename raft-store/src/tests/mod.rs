//! Replicas on real parts: the log and sled on a disk, the peers' wire on the loopback.

mod backup;
mod base;
mod cluster;
mod commands;
mod formats;
mod house;
mod plant;
mod promises;
mod recovery;
mod restarts;
mod room;
mod scrub;
mod suite;
mod sweeps;
mod transfer;

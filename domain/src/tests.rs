//! Stories, laws and golden files of the whole state machine.

mod authority;
mod clock;
mod enrolment;
mod epochs;
mod exposures;
mod formats;
mod golden;
mod house;
mod keys;
mod kits;
mod laws;
mod members;
mod memory;
mod operators;
mod samples;
mod succession;
mod tokens;
mod tombstones;

//! Stories, laws and golden files of the whole state machine.

mod clock;
mod epochs;
mod golden;
mod house;
mod keys;
mod laws;
mod members;
mod memory;
mod samples;
mod tokens;

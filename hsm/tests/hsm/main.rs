//! One contract, every kind of token; then what is particular to each.
//!
//! PKCS#11 modules read their configuration from the environment of the process, so the tests of
//! SoftHSM run in a child of this binary whose environment is set.

mod contract;
mod embedded;
mod softhsm;
mod support;

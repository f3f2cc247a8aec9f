//! One contract, every kind of token; then what is particular to each.
//!
//! PKCS#11 modules read their configuration from the environment of the process, so their tests run
//! in a child of this binary whose environment is set (`child.rs`).

mod attacks;
mod child;
mod contract;
mod embedded;
mod faults;
mod pkcs11;
mod profiles;
mod support;

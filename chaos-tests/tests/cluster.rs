//! Stories of real clusters. Each says what happens, and what must be true afterwards.
//!
//! Sizes come from the environment: small here by default, full by `cargo xtask prove`
//! (`xtask/proofs.toml`). A failure prints the seed (`CHAOS_SEED` repeats it), keeps the history
//! beside the build and the cluster's folder with its logs.

mod stories {
    mod backup;
    mod bad_disk;
    mod bad_input;
    mod enrolment;
    mod failover;
    mod full_disk;
    mod join;
    mod kek_rotation;
    mod kills;
    mod kit;
    mod lost_state;
    mod memory;
    mod mixed_slots;
    mod partition;
    mod power;
    mod quorum_loss;
    mod replace;
    mod restore;
    mod revocation;
    mod secrets;
    mod slots;
    mod start;
    mod support;
    mod tokens;
    mod transfer;
    mod voter_down;
    mod zones;
}

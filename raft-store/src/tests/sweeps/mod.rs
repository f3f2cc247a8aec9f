//! Every crash point and every kind of damage, one by one.
//!
//! Each runs at a sample in `cargo test`, and whole in `cargo xtask prove crash-sweep` and
//! `damage-sweep`.

mod crash;
mod damage;
mod ground;

/// How much of a sweep is run: every so many points, and how many histories.
fn size(variable: &str, sample: u64) -> u64 {
    std::env::var(variable).map_or(sample, |text| text.parse().expect("a number"))
}

/// Where sled's files stand. In memory if the machine has such a place: what is durable there the
/// sweeps say themselves, so waiting for a disk would add nothing.
fn scratch() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).expect("a directory")
}

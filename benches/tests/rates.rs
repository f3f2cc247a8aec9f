//! The measurement at its smallest: that it works, not what it comes to.

use std::process::Command;

#[test]
fn every_subject_is_measured() {
    let output = Command::new(env!("CARGO_BIN_EXE_encrypt-rate"))
        .env("BENCH_CONNECTIONS", "8")
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{complaint}");
    for figure in [
        "FIGURE encrypt, one node: requests/s, ratio to bare = ",
        "FIGURE encrypt, three nodes: requests/s, ratio to bare = ",
        "FIGURE create, three nodes: requests/s = ",
    ] {
        assert!(text.contains(figure), "no {figure} in {text}");
    }
}

//! A recovery kit as operators make it: on the command line, against a cluster of real processes
//! whose slots are PKCS#11 tokens.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use chaos_tests::dev_cluster::{DevCluster, Hsm, Plan};
use chaos_tests::newcomer::said;

use super::support::{figure, turn};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kit_is_made_drilled_and_dropped() {
    let _turn = turn().await;
    let cluster = DevCluster::start(&Plan { nodes: 1, hsm: Hsm::SoftHsm, ..Plan::default() }).await;
    let out = cluster.folder().join("kit");
    let (out_dir, operator) = (text(&out), text(&cluster.operator_key));
    let make = ["recovery-kit", "create", "--shares", "3", "--threshold", "2", "--out", &out_dir];
    let made = cluster.operator(&[&make[..], &["--operator-key", &operator]].concat()).await;
    assert!(made.status.success(), "{}", said(&made));

    let mut files: Vec<_> = fs::read_dir(&out).expect("it reads").flatten().collect();
    files.sort_by_key(fs::DirEntry::file_name);
    assert_eq!(files.len(), 3);
    for file in &files {
        let mode = file.metadata().expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file:?}");
    }
    let shares: Vec<String> = files.iter().map(|file| text(&file.path())).collect();
    let drill = |shares: &[&String]| {
        let mut arguments = vec!["recovery-kit".to_owned(), "drill".to_owned()];
        for share in shares {
            arguments.extend(["--share".to_owned(), (*share).clone()]);
        }
        arguments
    };
    for (chosen, works) in [
        (drill(&[&shares[0]]), false),
        (drill(&[&shares[0], &shares[0]]), false),
        (drill(&[&shares[0], &shares[2]]), true),
        (drill(&[&shares[1], &shares[2]]), true),
    ] {
        let arguments: Vec<&str> = chosen.iter().map(String::as_str).collect();
        let drilled = cluster.operator(&arguments).await;
        assert_eq!(drilled.status.success(), works, "{arguments:?}: {}", said(&drilled));
    }
    let status = cluster.status().await;
    assert!(status.recovery_kits.iter().all(|kit| kit.escrowed), "{status:?}");

    let kit = &status.recovery_kits[0].id;
    let dropped = cluster.operator(&["recovery-kit", "drop", kit, "--yes"]).await;
    assert!(dropped.status.success(), "{}", said(&dropped));
    let arguments = drill(&[&shares[0], &shares[1]]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let drilled = cluster.operator(&arguments).await;
    assert!(said(&drilled).contains("wraps nothing to the kit"), "{}", said(&drilled));
    figure("drills", 5);
}

fn text(path: &std::path::Path) -> String {
    path.display().to_string()
}

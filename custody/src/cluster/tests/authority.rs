//! Another CA, from its announcement to the end of the one before.

use super::*;

impl Cluster {
    async fn trusted(&self) -> Vec<String> {
        self.leader().authority(&self.context()).await.unwrap().value.trusted
    }

    /// The CA whose certificates all nodes were issued last.
    fn issued_by(&self, authority: &str) -> bool {
        self.nodes.values().all(|node| {
            let issued = node.custody.certificate().borrow().clone();
            issued.is_some_and(|issued| issued.chain_pem.ends_with(authority))
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_ca_is_trusted_before_it_issues_and_the_old_one_after() {
    let mut cluster = Cluster::of_one().await;
    cluster.admit("n2").await;
    cluster.until("both vote and hold one epoch", |cluster| cluster.at_rest(2)).await;
    let first = cluster.trusted().await;
    let [old] = first.as_slice() else { panic!("{first:?}") };
    cluster.until("the first CA issued", |cluster| cluster.issued_by(old)).await;

    let soon = Span(3_000);
    cluster.leader().rotate_authority(&cluster.context(), soon).await.unwrap();
    let twice = cluster.leader().rotate_authority(&cluster.context(), soon).await;
    assert!(matches!(twice, Err(Error::WrongState(_))), "{twice:?}");
    let announced = cluster.trusted().await;
    let [current, next] = announced.as_slice() else { panic!("{announced:?}") };
    assert_eq!(current, old);
    assert!(cluster.issued_by(old), "it is announced, and issues nothing");

    cluster.until("the next CA issued", |cluster| cluster.issued_by(next)).await;
    assert_eq!(
        cluster.trusted().await,
        [next.clone(), old.clone()],
        "the old one is trusted still"
    );
    let view = cluster.leader().authority(&cluster.context()).await.unwrap().value;
    assert!(view.next_issues_from.is_none() && view.former_until.is_some());

    cluster.leader().drop_former_authority(&cluster.context()).await.unwrap();
    assert_eq!(cluster.trusted().await, std::slice::from_ref(next));
    cluster.leader().rotate_authority(&cluster.context(), Span(0)).await.unwrap();
    cluster.stop().await;
}

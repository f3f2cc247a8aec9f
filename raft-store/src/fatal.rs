//! The one place where "this process must stop" is said. The first reason stays.

use tokio::sync::watch;

#[derive(Clone, Debug)]
pub(crate) struct Fatal(watch::Sender<Option<String>>);

impl Fatal {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    pub(crate) fn raise(&self, reason: impl Into<String>) {
        let reason = reason.into();
        self.0.send_if_modified(|first| {
            if first.is_some() {
                return false;
            }
            tracing::error!(%reason, "the replica can not go on");
            *first = Some(reason);
            true
        });
    }

    /// Resolves when there is a reason, at once if there is one already.
    pub(crate) async fn raised(&self) -> String {
        let mut reasons = self.0.subscribe();
        let reason = reasons.wait_for(Option::is_some).await.map(|reason| reason.clone());
        // The sender is in `self`, so the channel can not close.
        reason.ok().flatten().unwrap_or_default()
    }
}

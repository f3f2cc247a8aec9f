//! The server's end of the socket.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Found, Founding, Join, NodeView, Unsigned};

/// What a member says to whoever asks it to found or to join.
pub(crate) const BELONGS: &str = "this node belongs to a cluster already";

/// How far the node is, for those who look.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    pub(crate) phase: &'static str,
    pub(crate) node_id: Option<u64>,
    pub(crate) note: Option<String>,
}

/// What a node without a cluster is asked to do; the answer is a reason when it is not done.
pub(crate) enum Ask {
    Prepare(oneshot::Sender<Result<Unsigned, String>>),
    Found(Found, oneshot::Sender<Result<Founding, String>>),
    Join(Join, oneshot::Sender<Result<(), String>>),
}

impl Ask {
    /// Whether it is to join in the place of the member that the node is, or was.
    pub(crate) fn replaces(&self) -> bool {
        matches!(self, Self::Join(join, _) if join.replace)
    }

    /// Answers with the reason why it is not done. Whoever asked may be gone.
    pub(crate) fn refuse(self, why: &str) {
        match self {
            Self::Prepare(answer) => drop(answer.send(Err(why.into()))),
            Self::Found(_, answer) => drop(answer.send(Err(why.into()))),
            Self::Join(_, answer) => drop(answer.send(Err(why.into()))),
        }
    }
}

#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) name: String,
    pub(crate) fingerprint: String,
    pub(crate) stage: watch::Receiver<Stage>,
    pub(crate) asks: mpsc::Sender<Ask>,
}

/// Serves until the process ends.
pub(crate) async fn serve(path: PathBuf, admin: Admin) -> std::io::Result<()> {
    // The data directory is held by this process: a socket in it is a left-over, and is replaced.
    let listener = bind_private(&path)?;
    let router = Router::new()
        .route("/v1/node", get(node))
        .route("/v1/init/prepare", post(prepare))
        .route("/v1/init", post(found))
        .route("/v1/join", post(join))
        .with_state(admin);
    axum::serve(listener, router).await
}

/// Bound where nobody else gets to, and moved when it is closed to them: between `bind` and `chmod`
/// a socket is as open as the umask says.
fn bind_private(path: &Path) -> std::io::Result<UnixListener> {
    let aside = path.with_extension("new");
    if aside.exists() {
        std::fs::remove_dir_all(&aside)?;
    }
    std::fs::DirBuilder::new().mode(0o700).create(&aside)?;
    let fresh = aside.join("s");
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    std::fs::remove_dir(&aside)?;
    Ok(listener)
}

async fn node(State(admin): State<Admin>) -> Json<NodeView> {
    let Stage { phase, node_id, note } = admin.stage.borrow().clone();
    let (name, fingerprint) = (admin.name, admin.fingerprint);
    Json(NodeView { name, phase: phase.into(), node_id, fingerprint, note })
}

async fn prepare(State(admin): State<Admin>) -> Response {
    ask(&admin, Ask::Prepare).await
}

async fn found(State(admin): State<Admin>, Json(found): Json<Found>) -> Response {
    ask(&admin, |answer| Ask::Found(found, answer)).await
}

async fn join(State(admin): State<Admin>, Json(join): Json<Join>) -> Response {
    ask(&admin, |answer| Ask::Join(join, answer)).await
}

async fn ask<T: serde::Serialize>(
    admin: &Admin,
    ask: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Ask,
) -> Response {
    let (answer, answered) = oneshot::channel();
    let sent = admin.asks.send(ask(answer)).await;
    let outcome = match sent {
        Ok(()) => answered.await.unwrap_or_else(|_| Err("it was not done".into())),
        Err(_) => Err(BELONGS.into()),
    };
    match outcome {
        Ok(value) => Json(value).into_response(),
        Err(why) => (StatusCode::CONFLICT, why).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_for_its_owner_and_takes_the_place_of_an_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        for _ in 0..2 {
            let _listener = bind_private(&path).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            tokio::net::UnixStream::connect(&path).await.unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
        }
    }
}

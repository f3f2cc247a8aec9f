//! `/v1/keys/{name}/versions`: the versions of a key.

use std::sync::Arc;

use custody::{Changed, Custody, Error, SeenVersion};
use domain::KeyVersion;

use crate::call::Call;
use crate::page;
use crate::render;
use crate::reply::{Answer, Reply};

pub(crate) async fn list(custody: Custody, call: Arc<Call>) -> Answer {
    let page = page::page(&call)?;
    let seen = custody.versions(&call.context, call.key_name()?, page).await?;
    Reply::seen(seen, |(versions, last)| {
        let rendered = |seen: &SeenVersion| wire::Version {
            exposed_at: seen.exposed_at.map(render::time),
            ..render::version(&seen.version)
        };
        let versions = versions.iter().map(rendered).collect();
        Reply::json(&wire::Versions { versions, next_page_token: page::token(last) })
    })
}

pub(crate) async fn enable(custody: Custody, call: Arc<Call>) -> Answer {
    call.no_body()?;
    changed(custody.enable_version(&call.context, call.key_name()?, call.version()?).await)
}

pub(crate) async fn disable(custody: Custody, call: Arc<Call>) -> Answer {
    call.no_body()?;
    changed(custody.disable_version(&call.context, call.key_name()?, call.version()?).await)
}

pub(crate) async fn schedule_destruction(custody: Custody, call: Arc<Call>) -> Answer {
    let after = crate::keys::after(&call)?;
    let (name, version) = (call.key_name()?, call.version()?);
    changed(custody.schedule_version_destruction(&call.context, name, version, after).await)
}

pub(crate) async fn cancel_destruction(custody: Custody, call: Arc<Call>) -> Answer {
    call.no_body()?;
    let (name, version) = (call.key_name()?, call.version()?);
    changed(custody.cancel_version_destruction(&call.context, name, version).await)
}

fn changed(outcome: Result<Changed<KeyVersion>, Error>) -> Answer {
    Reply::changed(outcome?, |version| {
        let revision = version.revision.0;
        Ok(Reply::json(&render::version(&version))?.at(revision))
    })
}

//! `/v1/cluster/settings`: the few settings that are state.

use std::sync::Arc;

use custody::Custody;
use domain::{Settings, SettingsPatch, Span};
use wire::Patch;

use crate::call::Call;
use crate::render;
use crate::reply::{Answer, Reply};

pub(crate) async fn show(custody: Custody, call: Arc<Call>) -> Answer {
    Reply::seen(custody.settings(&call.context).await?, |settings| rendered(&settings))
}

pub(crate) async fn update(custody: Custody, call: Arc<Call>) -> Answer {
    let patch = settings_patch(&call.json()?);
    let changed = custody.patch_settings(&call.context, patch).await?;
    Reply::changed(changed, |settings| rendered(&settings))
}

fn rendered(settings: &Settings) -> Answer {
    Reply::json(&wire::Settings {
        min_destruction_after: wire::Span(settings.min_destruction_after.0),
        idempotency_window: wire::Span(settings.idempotency_window.0),
    })
}

fn settings_patch(body: &wire::SettingsPatch) -> SettingsPatch {
    let default = Settings::default();
    SettingsPatch {
        min_destruction_after: patched(&body.min_destruction_after, default.min_destruction_after),
        idempotency_window: patched(&body.idempotency_window, default.idempotency_window),
    }
}

/// `null` sets back to the default.
fn patched(patch: &Patch<wire::Span>, default: Span) -> Option<Span> {
    match patch {
        Patch::Keep => None,
        Patch::Clear => Some(default),
        Patch::Set(span) => Some(render::span(*span)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_keeps_clears_or_sets() {
        let patched = |json| settings_patch(&serde_json::from_str(json).unwrap());
        assert_eq!(patched("{}"), SettingsPatch::default());
        let cleared = patched(r#"{"min_destruction_after":null}"#);
        assert_eq!(cleared.min_destruction_after, Some(Span::from_hours(24)));
        let set = patched(r#"{"idempotency_window":"48h"}"#);
        assert_eq!(set.idempotency_window, Some(Span::from_hours(48)));
        assert_eq!(set.min_destruction_after, None);
    }
}

//! `/v1/cluster/settings`: the few settings that are state.

use std::sync::Arc;

use custody::{ClusterSettings, ClusterSettingsPatch, Custody};
use domain::{KekPolicy, KekPolicyPatch, Settings, SettingsPatch, Span};
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

fn rendered(ClusterSettings { settings, kek }: &ClusterSettings) -> Answer {
    Reply::json(&wire::Settings {
        min_destruction_after: wire::Span(settings.min_destruction_after.0),
        idempotency_window: wire::Span(settings.idempotency_window.0),
        kek_rotation_period: wire::Span(kek.rotation_period.0),
        kek_wraps_max: kek.wraps_max,
        rewrap_rate: kek.rewrap_rate,
    })
}

fn settings_patch(body: &wire::SettingsPatch) -> ClusterSettingsPatch {
    let (default, kek) = (Settings::default(), KekPolicy::default());
    ClusterSettingsPatch {
        settings: SettingsPatch {
            min_destruction_after: span(&body.min_destruction_after, default.min_destruction_after),
            idempotency_window: span(&body.idempotency_window, default.idempotency_window),
        },
        kek: KekPolicyPatch {
            rotation_period: span(&body.kek_rotation_period, kek.rotation_period),
            wraps_max: patched(&body.kek_wraps_max, kek.wraps_max),
            rewrap_rate: patched(&body.rewrap_rate, kek.rewrap_rate),
        },
    }
}

fn span(patch: &Patch<wire::Span>, default: Span) -> Option<Span> {
    patched(patch, wire::Span(default.0)).map(render::span)
}

/// `null` sets back to the default.
fn patched<T: Copy>(patch: &Patch<T>, default: T) -> Option<T> {
    match patch {
        Patch::Keep => None,
        Patch::Clear => Some(default),
        Patch::Set(value) => Some(*value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_keeps_clears_or_sets() {
        let patched = |json| settings_patch(&serde_json::from_str(json).unwrap());
        assert_eq!(patched("{}"), ClusterSettingsPatch::default());
        let cleared = patched(r#"{"min_destruction_after":null,"rewrap_rate":null}"#);
        assert_eq!(cleared.settings.min_destruction_after, Some(Span::from_hours(24)));
        assert_eq!(cleared.kek.rewrap_rate, Some(1_000));
        let set = patched(r#"{"idempotency_window":"48h","kek_rotation_period":"0s"}"#);
        assert_eq!(set.settings.idempotency_window, Some(Span::from_hours(48)));
        assert_eq!(set.settings.min_destruction_after, None);
        assert_eq!(set.kek.rotation_period, Some(Span(0)));
    }
}

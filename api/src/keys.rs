//! `/v1/keys`: keys, and what changes them.

use std::sync::Arc;

use axum::http::StatusCode;
use custody::{Changed, Custody, Error, KeyFilter, NewKey, Seen};
use domain::{Key, KeyPatch, Protection, Span, Traits};
use wire::{Patch, RotationPatch};

use crate::call::Call;
use crate::page;
use crate::problem::Refusal;
use crate::render;
use crate::reply::{Answer, Reply};
use crate::route::Parameter;

pub(crate) const STATE: Parameter = Parameter {
    name: "state",
    words: &["enabled", "disabled", "destruction_scheduled", "destroyed"],
    describe: "only keys in this state",
};
pub(crate) const ALGORITHM: Parameter =
    Parameter { name: "algorithm", words: &[], describe: "only keys of this algorithm" };
pub(crate) const LABEL: Parameter =
    Parameter { name: "label", words: &[], describe: "only keys with this label, as `name:value`" };

pub(crate) async fn create(custody: Custody, call: Arc<Call>) -> Answer {
    let body: wire::CreateKey = call.json()?;
    let (algorithm, purpose) = render::new_key_kind(body.algorithm, body.purpose)?;
    let rotation_period = body.rotation.map(|rotation| {
        no_next_at(rotation.next_at)?;
        Ok::<_, Refusal>(render::span(rotation.period))
    });
    let new = NewKey {
        name: body.name,
        algorithm,
        purpose,
        description: body.description.unwrap_or_default(),
        labels: body.labels.unwrap_or_default(),
        rotation_period: rotation_period.transpose()?,
        traits: Traits {
            exportable: body.exportable.unwrap_or_default(),
            protection: match body.protection.unwrap_or_default() {
                wire::Protection::Software => Protection::Software,
                wire::Protection::Hsm => Protection::Hsm,
            },
        },
        deletion_protection: body.deletion_protection.unwrap_or_default(),
    };
    Ok(changed(custody.create_key(&call.context, new).await)?.status(StatusCode::CREATED))
}

pub(crate) async fn list(custody: Custody, call: Arc<Call>) -> Answer {
    let state = call.parameter(STATE.name).map(|word| match word.parse() {
        Ok(state) => Ok(render::key_state(state)),
        Err(error) => Err(Refusal::malformed(format!("`state`: {error}"))),
    });
    let algorithm = call.parameter(ALGORITHM.name).map(|word| {
        let parsed: Result<wire::Algorithm, _> = word.parse();
        parsed.map_err(|error| Refusal::malformed(format!("`algorithm`: {error}")))
    });
    let algorithm = match algorithm.transpose()? {
        None => None,
        Some(asked) => match render::served_algorithm(asked) {
            Some(served) => Some(served),
            // A name of the contract that no key can have yet.
            None => return Reply::json(&wire::Keys::default()),
        },
    };
    let label = call.parameter(LABEL.name).map(|label| match label.split_once(':') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(Refusal::malformed("`label` is `name:value`")),
    });
    let filter = KeyFilter { state: state.transpose()?, algorithm, label: label.transpose()? };
    let seen = custody.keys(&call.context, filter, page::page(&call)?).await?;
    Reply::seen(seen, |(keys, last)| {
        let keys = keys.into_iter().map(render::key).collect();
        Reply::json(&wire::Keys { keys, next_page_token: page::token(last) })
    })
}

pub(crate) async fn show(custody: Custody, call: Arc<Call>) -> Answer {
    let Seen { value, index } = custody.key(&call.context, call.key_name()?).await?;
    Reply::seen(Seen { value, index }, rendered)
}

pub(crate) async fn update(custody: Custody, call: Arc<Call>) -> Answer {
    let patch = key_patch(call.json()?)?;
    changed(custody.update_key(&call.context, call.key_name()?, patch).await)
}

pub(crate) async fn rotate(custody: Custody, call: Arc<Call>) -> Answer {
    call.no_body()?;
    changed(custody.rotate_key(&call.context, call.key_name()?).await)
}

pub(crate) async fn enable(custody: Custody, call: Arc<Call>) -> Answer {
    call.no_body()?;
    changed(custody.enable_key(&call.context, call.key_name()?).await)
}

pub(crate) async fn disable(custody: Custody, call: Arc<Call>) -> Answer {
    call.no_body()?;
    changed(custody.disable_key(&call.context, call.key_name()?).await)
}

pub(crate) async fn schedule_destruction(custody: Custody, call: Arc<Call>) -> Answer {
    let after = after(&call)?;
    changed(custody.schedule_key_destruction(&call.context, call.key_name()?, after).await)
}

pub(crate) async fn cancel_destruction(custody: Custody, call: Arc<Call>) -> Answer {
    call.no_body()?;
    changed(custody.cancel_key_destruction(&call.context, call.key_name()?).await)
}

/// How long a scheduled destruction waits; the cluster's minimum when the caller does not say.
pub(crate) fn after(call: &Call) -> Result<Option<Span>, Refusal> {
    let body: wire::ScheduleDestruction = call.json_or_default()?;
    Ok(body.after.map(render::span))
}

fn changed(outcome: Result<Changed<Key>, Error>) -> Answer {
    Reply::changed(outcome?, rendered)
}

fn rendered(key: Key) -> Answer {
    let revision = key.revision.0;
    Ok(Reply::json(&render::key(key))?.at(revision))
}

fn key_patch(body: wire::UpdateKey) -> Result<KeyPatch, Refusal> {
    let rotation_period = match body.rotation {
        Patch::Keep => None,
        Patch::Clear => Some(None),
        Patch::Set(RotationPatch { period, next_at }) => {
            no_next_at(next_at)?;
            period.map(|period| Some(render::span(period)))
        }
    };
    let (clear_labels, labels) = match body.labels {
        Patch::Keep => (false, None),
        Patch::Clear => (true, None),
        Patch::Set(labels) => (false, Some(labels)),
    };
    Ok(KeyPatch {
        description: match body.description {
            Patch::Keep => None,
            Patch::Clear => Some(String::new()),
            Patch::Set(description) => Some(description),
        },
        labels: labels.unwrap_or_default(),
        clear_labels,
        rotation_period,
        deletion_protection: match body.deletion_protection {
            Patch::Keep => None,
            Patch::Clear => Some(false),
            Patch::Set(protected) => Some(protected),
        },
    })
}

fn no_next_at(next_at: Option<wire::Time>) -> Result<(), Refusal> {
    match next_at {
        None => Ok(()),
        Some(_) => {
            Err(Refusal::invalid("`rotation.next_at` follows from `period` and can not be set"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(json: &str) -> Result<KeyPatch, Refusal> {
        key_patch(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_merge_patch_says_keep_clear_or_set() {
        assert_eq!(patched("{}").unwrap(), KeyPatch::default());
        let cleared = patched(
            r#"{"description":null,"labels":null,"rotation":null,"deletion_protection":null}"#,
        )
        .unwrap();
        let expected = KeyPatch {
            description: Some(String::new()),
            clear_labels: true,
            rotation_period: Some(None),
            deletion_protection: Some(false),
            ..KeyPatch::default()
        };
        assert_eq!(cleared, expected);
        let set = patched(r#"{"labels":{"a":"1","b":null},"rotation":{"period":"90d"}}"#).unwrap();
        assert_eq!(set.labels["a"], Some("1".to_owned()));
        assert_eq!(set.labels["b"], None);
        assert_eq!(set.rotation_period, Some(Some(Span::from_hours(90 * 24))));
        assert_eq!(patched(r#"{"rotation":{}}"#).unwrap().rotation_period, None);
        assert!(patched(r#"{"rotation":{"next_at":"2030-01-01T00:00:00Z"}}"#).is_err());
    }
}

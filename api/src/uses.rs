//! The uses of keys: encrypt, decrypt, reencrypt, data-key and random.

use std::sync::Arc;

use crypto::SecretBytes;
use custody::{Custody, DecryptItem, Decrypted, EncryptItem, Encrypted, Error, ReencryptItem};
use serde::Serialize;
use wire::recipient::{
    DataKey, DataKeyRequest, Decrypt, Plaintext, PlaintextOrSealed, Random, RandomRequest,
};
use wire::{AAD_MAX, BATCH_MAX, Ciphertext, Input, Outcome, PLAINTEXT_MAX, RANDOM_MAX};

use crate::call::Call;
use crate::problem::Refusal;
use crate::recipient::{Recipient, base64};
use crate::reply::{Answer, Reply};

pub(crate) async fn encrypt(custody: Custody, call: Arc<Call>) -> Answer {
    let name = call.key_name()?;
    let many = Many::of(call.json()?)?.map(|item: wire::Encrypt, at| {
        limit(&at, "plaintext", item.plaintext.len(), PLAINTEXT_MAX)?;
        limit(&at, "aad", item.aad.0.len(), AAD_MAX)?;
        let plaintext = SecretBytes::from_zeroizing(item.plaintext.into_zeroizing());
        Ok(EncryptItem { plaintext, aad: item.aad.0 })
    })?;
    let results = custody.encrypt(&call.context, name, many.items).await?;
    many.form.json(results.into_iter().map(|result| Ok(encrypted(result?))), &call)
}

pub(crate) async fn reencrypt(custody: Custody, call: Arc<Call>) -> Answer {
    let name = call.key_name()?;
    let many = Many::of(call.json()?)?.map(|item: wire::Reencrypt, at| {
        limit(&at, "aad", item.aad.0.len(), AAD_MAX)?;
        limit(&at, "to_aad", item.to_aad.as_ref().map_or(0, |aad| aad.0.len()), AAD_MAX)?;
        Ok(ReencryptItem {
            ciphertext: item.ciphertext.0,
            aad: item.aad.0,
            to_key: item.to_key,
            to_aad: item.to_aad.map(|aad| aad.0),
        })
    })?;
    let results = custody.reencrypt(&call.context, name, many.items).await?;
    many.form.json(results.into_iter().map(|result| Ok(encrypted(result?))), &call)
}

/// With a key's name in the path.
pub(crate) async fn decrypt(custody: Custody, call: Arc<Call>) -> Answer {
    let name = call.key_name()?;
    open(&custody, &call, Some(name)).await
}

/// The key is found from the ciphertext.
pub(crate) async fn decrypt_any(custody: Custody, call: Arc<Call>) -> Answer {
    open(&custody, &call, None).await
}

async fn open(custody: &Custody, call: &Call, name: Option<&str>) -> Answer {
    let mut recipients = Vec::new();
    let many = Many::of(call.json()?)?.map(|item: Decrypt, at| {
        limit(&at, "aad", item.aad.0.len(), AAD_MAX)?;
        let recipient = item.recipient.map(|key| Recipient::parse(&key, &item.aad.0, &at));
        recipients.push(recipient.transpose()?);
        Ok(DecryptItem { ciphertext: item.ciphertext.0, aad: item.aad.0 })
    })?;
    let results = custody.decrypt(&call.context, name, many.items).await?;
    let mut size = 0;
    let results: Vec<_> = results
        .into_iter()
        .zip(&recipients)
        .map(|(result, recipient)| {
            let Decrypted { plaintext, key, version } = result?;
            size += json_size(plaintext.len(), key.len());
            let secret = secret(&plaintext, recipient.as_ref(), call, &key, version.0)?;
            Ok(Plaintext { secret, key, version: version.0 })
        })
        .collect();
    many.form.secret(results.into_iter(), size, call)
}

pub(crate) async fn data_key(custody: Custody, call: Arc<Call>) -> Answer {
    let name = call.key_name()?;
    let body: DataKeyRequest = call.json()?;
    limit("", "aad", body.aad.0.len(), AAD_MAX)?;
    let recipient =
        body.recipient.map(|key| Recipient::parse(&key, &body.aad.0, "")).transpose()?;
    let bits = u16::try_from(body.bits).map_err(|_| {
        let bits = body.bits;
        Refusal::invalid(format!("`bits` is {bits}, allowed are 128, 192, 256 and 512"))
    })?;
    let made = custody.data_key(&call.context, name, bits, &body.aad.0).await?;
    let secret = if body.wrapped_only {
        None
    } else {
        let version = made.version.0;
        Some(secret(&made.plaintext, recipient.as_ref(), &call, &made.key, version)?)
    };
    let size = json_size(made.plaintext.len() + made.ciphertext.len(), made.key.len());
    let ciphertext = made.ciphertext.into();
    let answer = DataKey { secret, ciphertext, key: made.key, version: made.version.0 };
    Reply::secret(&answer, size)
}

pub(crate) async fn random(custody: Custody, call: Arc<Call>) -> Answer {
    let body: RandomRequest = call.json()?;
    if !(1..=RANDOM_MAX).contains(&body.bytes) {
        let bytes = body.bytes;
        return Err(Refusal::invalid(format!("`bytes` is {bytes}, allowed are 1 to {RANDOM_MAX}")));
    }
    let recipient = body.recipient.map(|key| Recipient::parse(&key, b"", "")).transpose()?;
    let drawn = custody.random(&call.context, body.bytes as usize).await?;
    let size = json_size(drawn.len(), 0);
    let answer = match secret(&drawn, recipient.as_ref(), &call, "", 0)? {
        PlaintextOrSealed::Plaintext(random) => Random::Random(random),
        PlaintextOrSealed::Sealed(sealed) => Random::Sealed(sealed),
    };
    Reply::secret(&answer, size)
}

fn secret(
    secret: &SecretBytes,
    recipient: Option<&Recipient>,
    call: &Call,
    key: &str,
    version: u32,
) -> Result<PlaintextOrSealed, Refusal> {
    Ok(match recipient {
        None => PlaintextOrSealed::Plaintext(base64(secret)),
        Some(recipient) => PlaintextOrSealed::Sealed(recipient.seal(
            secret,
            &call.context.request_id,
            key,
            version,
        )?),
    })
}

fn encrypted(Encrypted { ciphertext, key, version }: Encrypted) -> Ciphertext {
    Ciphertext { ciphertext: ciphertext.into(), key, version: version.0 }
}

/// At least the bytes of one answer in JSON: base64, sealing, names of fields and a problem's text.
fn json_size(bytes: usize, name: usize) -> usize {
    (bytes + 64).div_ceil(3) * 4 + name + 512
}

fn limit(at: &str, field: &str, got: usize, max: usize) -> Result<(), Refusal> {
    if got <= max {
        return Ok(());
    }
    Err(Refusal::invalid(format!("`{at}{field}` has {got} bytes, at most {max} are allowed")))
}

/// The items of a request, and the form its answer has.
struct Many<T> {
    items: Vec<T>,
    form: Form,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Form {
    One,
    Batch,
}

impl<T> Many<T> {
    fn of(input: Input<T>) -> Result<Self, Refusal> {
        match input {
            Input::One(item) => Ok(Self { items: vec![item], form: Form::One }),
            Input::Batch { batch: items } if (1..=BATCH_MAX).contains(&items.len()) => {
                Ok(Self { items, form: Form::Batch })
            }
            Input::Batch { batch } => Err(Refusal::invalid(format!(
                "`batch` has {} items, allowed are 1 to {BATCH_MAX}",
                batch.len()
            ))),
        }
    }

    /// Checks and converts each item; the second argument says where it stands.
    fn map<U>(
        self,
        mut convert: impl FnMut(T, String) -> Result<U, Refusal>,
    ) -> Result<Many<U>, Refusal> {
        let form = self.form;
        let at = |index| match form {
            Form::One => String::new(),
            Form::Batch => format!("batch[{index}]."),
        };
        let items = self.items.into_iter().enumerate().map(|(i, item)| convert(item, at(i)));
        Ok(Many { items: items.collect::<Result<_, _>>()?, form })
    }
}

impl Form {
    fn json<T: Serialize>(
        self,
        results: impl Iterator<Item = Result<T, Refusal>>,
        call: &Call,
    ) -> Answer {
        Reply::json(&self.answer(results, call)?)
    }

    fn secret<T: Serialize>(
        self,
        results: impl Iterator<Item = Result<T, Refusal>>,
        size: usize,
        call: &Call,
    ) -> Answer {
        let answer = self.answer(results, call)?;
        let failures = match &answer {
            wire::Answer::Batch { results } => results.len() * json_size(0, 0),
            wire::Answer::One(_) => 0,
        };
        Reply::secret(&answer, size + failures)
    }

    /// One item's failure is the request's; among many it stands in its place.
    fn answer<T>(
        self,
        mut results: impl Iterator<Item = Result<T, Refusal>>,
        call: &Call,
    ) -> Result<wire::Answer<T>, Refusal> {
        match self {
            Self::One => {
                let only = results.next().ok_or(Error::Internal("no result".to_owned()))?;
                Ok(wire::Answer::One(only?))
            }
            Self::Batch => {
                let outcome = |result| match result {
                    Ok(item) => Ok(Outcome::Done(item)),
                    Err(Refusal::Problem(problem)) => {
                        Ok(Outcome::Failed { problem: problem.item(&call.context.request_id) })
                    }
                    // Whether to go elsewhere is decided for the request as a whole.
                    Err(
                        elsewhere
                        @ (Refusal::DryRun | Refusal::NotLeader { .. } | Refusal::Unknown),
                    ) => Err(elsewhere),
                };
                Ok(wire::Answer::Batch { results: results.map(outcome).collect::<Result<_, _>>()? })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail(refusal: Refusal) -> String {
        let Refusal::Problem(problem) = refusal else { panic!("a problem") };
        assert_eq!(problem.told.status, 422);
        problem.told.detail.unwrap()
    }

    #[test]
    fn batches_have_bounds() {
        assert_eq!(Many::of(Input::One(1)).unwrap().form, Form::One);
        let full = Input::Batch { batch: vec![0; 1_000] };
        assert_eq!(Many::of(full).unwrap().form, Form::Batch);
        for wrong in [0, 1_001] {
            let refused = Many::of(Input::Batch { batch: vec![0; wrong] }).err().unwrap();
            let detail = detail(refused);
            assert!(detail.contains("1000") && detail.contains(&wrong.to_string()), "{detail}");
        }
    }

    #[test]
    fn what_is_over_a_limit_is_named_with_both_numbers() {
        let batch = Many::of(Input::Batch { batch: vec![3, 5] }).unwrap();
        let refused = batch.map(|got, at| limit(&at, "aad", got, 4)).err().unwrap();
        assert_eq!(detail(refused), "`batch[1].aad` has 5 bytes, at most 4 are allowed");
        let one = Many::of(Input::One(5)).unwrap();
        let refused = one.map(|got, at| limit(&at, "aad", got, 4)).err().unwrap();
        assert_eq!(detail(refused), "`aad` has 5 bytes, at most 4 are allowed");
    }

    #[test]
    fn one_failure_is_the_requests_and_one_of_many_stands_in_its_place() {
        let call = crate::edge::tests::call();
        let failure = || Refusal::from(Error::Cryptographic);
        let one = Form::One.answer::<u8>([Err(failure())].into_iter(), &call);
        assert!(matches!(one, Err(Refusal::Problem(_))));
        let many = Form::Batch.answer([Ok(1), Err(failure())].into_iter(), &call).unwrap();
        let json = serde_json::to_value(&many).unwrap();
        assert_eq!(json["results"][0], 1);
        assert_eq!(json["results"][1]["problem"]["code"], "cryptographic_failure");
        let moved = || Refusal::from(Error::NotLeader { leader: None });
        let many = Form::Batch.answer([Ok(1), Err(moved())].into_iter(), &call);
        assert!(matches!(many, Err(Refusal::NotLeader { .. })));
    }
}

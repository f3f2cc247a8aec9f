//! A long look at a PKCS#11 token, for a person.

use std::time::{Duration, Instant};

use crypto::share::Hash;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use cryptoki::session::Session as Raw;

use super::profile::{DeviceProfile, Ivs, KekPlace, Kept};
use super::session::Inner;
use super::templates::{self, Role, Stay};
use super::{Token, cipher};
use crate::Accept;
use crate::contract::Fault;
use crate::probe::Finding;

const ROUNDS: u32 = 200;
/// A slower token makes for slow starts of keys that are not cached.
const SLOW: Duration = Duration::from_millis(20);

impl Token {
    pub(crate) fn weaknesses(&self) -> Vec<(Accept, String)> {
        self.shared.profile().weak().to_vec()
    }

    pub(crate) fn probe(&self, node: &str, workers: usize) -> Vec<Finding> {
        let mut findings = Vec::new();
        findings.push(Finding::good("login", "the PIN was presented once, and is right"));
        match self.probe_keys(node) {
            Ok(found) => findings.extend(found),
            Err(fault) => {
                let why = fault.into_error().to_string();
                findings.push(Finding::bad("keys of the node", why));
            }
        }
        findings.extend(describe(&self.shared.profile()));
        findings.push(self.probe_sessions(workers));
        findings
    }

    fn probe_keys(&self, node: &str) -> Result<Vec<Finding>, Fault> {
        let mut session = self.open_session()?;
        let (_pass, inner) = session.begin()?;
        let mut findings = vec![look_at_keys(inner, node)?];
        findings.push(Finding::good("KEKs of epochs", format!("{} are in it", count_keks(inner)?)));
        if let KekPlace::Device(ivs) = self.shared.profile().kek {
            findings.push(time(inner.raw(), ivs)?);
        }
        Ok(findings)
    }

    fn probe_sessions(&self, workers: usize) -> Finding {
        let what = "sessions";
        let _pass = self.door.library.enter();
        let mut open = Vec::new();
        let refused = loop {
            if open.len() == workers {
                break None;
            }
            match self.door.open_session() {
                Ok(raw) => open.push(raw),
                Err(fault) => break Some(fault.into_error()),
            }
        };
        let got = open.len();
        for raw in open {
            let _ = raw.close();
        }
        match refused {
            None => Finding::good(what, format!("{workers} beside the one that keeps the login")),
            Some(why) if got == 0 => {
                Finding::bad(what, format!("it gives one in all, two are needed: {why}"))
            }
            Some(why) => Finding::weak(
                what,
                format!("it gives {got} of {workers}, so as many workers will share it: {why}"),
            ),
        }
    }
}

/// Tries the attacks on the node's enrolment key, or on one that is gone with the session.
fn look_at_keys(session: &mut Inner, node: &str) -> Result<Finding, Fault> {
    let what = "keys of the node";
    let there = [Role::Enrolment, Role::Identity].map(|role| session.private(role, node).is_ok());
    if there == [true, true] {
        for role in [Role::Enrolment, Role::Identity] {
            session.check(role, node)?;
        }
        let spki = session.public_keys(node)?.enrolment_spki;
        session.check_enforcement(session.private(Role::Enrolment, node)?, &spki)?;
        return Ok(Finding::good(
            what,
            format!("the keys of {node:?} are there and as they should be"),
        ));
    }
    let (public, private) = session.make_enrolment(node, Stay::Session)?;
    let tried = session.rsa_spki(public).and_then(|spki| session.check_enforcement(private, &spki));
    for key in [public, private] {
        let _ = session.raw().destroy_object(key);
    }
    tried?;
    Ok(match there {
        [false, false] => {
            Finding::good(what, format!("none of {node:?} yet: they are made at the first start"))
        }
        _ => Finding::bad(
            what,
            format!("{node:?} has one of its two keys: the token lost the other"),
        ),
    })
}

fn count_keks(session: &Inner) -> Result<usize, Fault> {
    let class = match session.profile().kek {
        KekPlace::Device(_) => ObjectClass::SECRET_KEY,
        KekPlace::Memory => ObjectClass::DATA,
    };
    let search = [Attribute::Class(class), Attribute::Token(true)];
    let raw = session.raw();
    let found = raw.find_objects(&search).map_err(|error| super::faults::classify(&error))?;
    let ours = found.into_iter().filter(|object| {
        let label = raw.get_attributes(*object, &[AttributeType::Label]).unwrap_or_default();
        matches!(&label[..], [Attribute::Label(label)] if label.starts_with(templates::KEK_LABEL))
    });
    Ok(ours.count())
}

/// How long it takes to open a blob, one after another.
fn time(raw: &Raw, ivs: Ivs) -> Result<Finding, Fault> {
    let fault = |error| super::faults::classify(&error);
    let key = raw.generate_key(&Mechanism::AesKeyGen, &templates::trial(true)).map_err(fault)?;
    let timed = (|| {
        let sealed = cipher::seal(raw, ivs, key, &[7; 32], b"trial")?;
        let start = Instant::now();
        for _ in 0..ROUNDS {
            drop(cipher::open(raw, key, &sealed, b"trial")?);
            if start.elapsed() > SLOW * ROUNDS {
                break;
            }
        }
        Ok(start.elapsed() / ROUNDS)
    })();
    let _ = raw.destroy_object(key);
    let each: Duration = timed.map_err(fault)?;
    let found = format!("{each:.1?} to open a blob, one after another");
    Ok(if each > SLOW { Finding::weak("speed", found) } else { Finding::good("speed", found) })
}

fn describe(profile: &DeviceProfile) -> Vec<Finding> {
    let kek = match profile.kek {
        KekPlace::Device(Ivs::Given) => "AES-256-GCM, with IVs of its generator (suite 1)",
        KekPlace::Device(Ivs::Written) => {
            "AES-256-GCM, with IVs of 12 bytes that it makes (suite 2)"
        }
        KekPlace::Device(Ivs::Appended) => {
            "AES-256-GCM, with IVs of 16 bytes that it makes (suite 2)"
        }
        KekPlace::Memory => "no AES-GCM: the KEK is sealed to it, and in the memory of the node",
    };
    let oaep = match profile.oaep {
        Hash::Sha256 => Finding::good("RSA-OAEP", "with SHA-256"),
        Hash::Sha1 => Finding::weak("RSA-OAEP", "with SHA-1 only, which policy scanners object to"),
    };
    let mut findings = vec![Finding::good("wrapping", kek), oaep];
    if profile.kek != KekPlace::Memory {
        let kept = |kept| match kept {
            Kept::Untried => "not tried",
            Kept::Enforced => "enforced",
            Kept::Ignored => "ignored",
            Kept::Unknown => "not known",
        };
        findings.push(Finding::good("CKA_ALLOWED_MECHANISMS", kept(profile.allowed_mechanisms)));
        findings.push(Finding::good("CKA_UNWRAP_TEMPLATE", kept(profile.unwrap_template)));
        let form = profile.unwrap;
        let with = [("CKA_MODIFIABLE", form.modifiable), ("CKA_VALUE_LEN", form.value_len)];
        let with: Vec<_> = with.iter().filter(|(_, said)| *said).map(|(name, _)| *name).collect();
        let found = if with.is_empty() { "neither CKA_MODIFIABLE nor CKA_VALUE_LEN" } else { "" };
        findings.push(Finding::good("said when unwrapping", [found, &with.join(", ")].concat()));
    }
    if let Some(number) = profile.padded_wrap {
        let found = format!("under {number}; nothing uses it yet");
        findings.push(Finding::good("AES key wrap with padding", found));
    }
    findings
}

//! The attribute templates. They are the security: with looser ones the KEK was read out in three
//! ways (an enrolment key that decrypts, an unwrap that asks for a readable key, a KEK that wraps).
//!
//! What a device does not know is left out, where that was accepted (`profile.rs`).

use std::ffi::c_ulong;

use crypto::sha256;
use cryptoki::mechanism::MechanismType;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass};
use cryptoki::types::Ulong;

use super::profile::{DeviceProfile, KekPlace, Kept, UnwrapForm};
use crate::KekId;

/// secp256r1
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// cryptoki has no name for it.
const CKA_UNWRAP_TEMPLATE: c_ulong = 0x4000_0212;
const CKA_CLASS: c_ulong = 0x0000;
const CKA_KEY_TYPE: c_ulong = 0x0100;
const CKA_SENSITIVE: c_ulong = 0x0103;
const CKA_WRAP: c_ulong = 0x0106;
const CKA_UNWRAP: c_ulong = 0x0107;
const CKA_EXTRACTABLE: c_ulong = 0x0162;
const CKO_SECRET_KEY: c_ulong = 4;
const CKK_AES: c_ulong = 0x1f;

/// Which of the two keys of a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Enrolment,
    Identity,
}

impl Role {
    fn label(self, name: &str) -> String {
        match self {
            Self::Enrolment => format!("strongroom/enrolment/{name}"),
            Self::Identity => format!("strongroom/identity/{name}"),
        }
    }

    /// Objects are searched by `CKA_ID`; the label is for people.
    pub(super) fn id(self, name: &str) -> Vec<u8> {
        sha256(self.label(name).as_bytes())[..16].to_vec()
    }

    fn name_of(self, name: &str) -> [Attribute; 2] {
        [Attribute::Id(self.id(name)), Attribute::Label(self.label(name).into_bytes())]
    }

    /// What the device has to say about the private key before it is trusted.
    pub(super) fn expected(self, kek: KekPlace) -> Vec<Attribute> {
        let unseals = self == Self::Enrolment && kek == KekPlace::Memory;
        let mut expected = vec![
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::AlwaysSensitive(true),
            Attribute::Extractable(false),
            Attribute::NeverExtractable(true),
            Attribute::Local(true),
            Attribute::Decrypt(unseals),
            Attribute::Derive(false),
        ];
        expected.extend(match self {
            Self::Enrolment => [Attribute::Unwrap(!unseals), Attribute::Sign(false)],
            Self::Identity => [Attribute::Unwrap(false), Attribute::Sign(true)],
        });
        expected
    }
}

/// Whether a key stays, or goes with the session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stay {
    Token,
    Session,
}

pub(super) fn enrolment_public(name: &str, stay: Stay) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Token(stay == Stay::Token),
        Attribute::Private(false),
        Attribute::ModulusBits(Ulong::new(3072)),
        Attribute::PublicExponent(vec![1, 0, 1]),
        Attribute::Wrap(true),
        Attribute::Encrypt(false),
        Attribute::Verify(false),
        Attribute::Modifiable(false),
    ];
    template.extend(Role::Enrolment.name_of(name));
    template
}

/// Hands the template of the enrolment private key to `make`. The unwrap template inside it points
/// into this frame, which is why it is lent and not given.
pub(super) fn with_enrolment_private<T>(
    name: &str,
    stay: Stay,
    profile: &DeviceProfile,
    make: impl FnOnce(&[Attribute]) -> T,
) -> T {
    let numbers: [c_ulong; 2] = [CKO_SECRET_KEY, CKK_AES];
    let truths: [u8; 2] = [0, 1];
    let [no, yes] = [&truths[0], &truths[1]];
    let mut raw = Vec::new();
    // An array of CK_ATTRIBUTE { type, pointer to the value, its length }.
    let mut push = |kind: c_ulong, value: usize, length: usize| {
        raw.extend_from_slice(&kind.to_ne_bytes());
        raw.extend_from_slice(&value.to_ne_bytes());
        raw.extend_from_slice(&length.to_ne_bytes());
    };
    push(CKA_CLASS, address(&numbers[0]), size_of::<c_ulong>());
    push(CKA_KEY_TYPE, address(&numbers[1]), size_of::<c_ulong>());
    for (kind, truth) in
        [(CKA_SENSITIVE, yes), (CKA_EXTRACTABLE, no), (CKA_WRAP, no), (CKA_UNWRAP, no)]
    {
        push(kind, address(truth), 1);
    }
    let kind = AttributeType::VendorDefined(CKA_UNWRAP_TEMPLATE);
    let unseals = profile.kek == KekPlace::Memory;
    let mut template = vec![
        Attribute::Token(stay == Stay::Token),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Unwrap(!unseals),
        Attribute::Decrypt(unseals),
        Attribute::Sign(false),
        Attribute::SignRecover(false),
        Attribute::Derive(false),
        Attribute::Modifiable(false),
        Attribute::Copyable(false),
    ];
    if profile.limits_mechanisms() {
        template.push(Attribute::AllowedMechanisms(vec![MechanismType::RSA_PKCS_OAEP]));
    }
    if !unseals && profile.unwrap_template != Kept::Unknown {
        template.push(Attribute::VendorDefined((kind, raw)));
    }
    template.extend(Role::Enrolment.name_of(name));
    make(&template)
}

fn address<T>(value: &T) -> usize {
    std::ptr::from_ref(value).expose_provenance()
}

pub(super) fn identity_public(name: &str) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::EcParams(P256.to_vec()),
        Attribute::Verify(true),
        Attribute::Modifiable(false),
    ];
    template.extend(Role::Identity.name_of(name));
    template
}

pub(super) fn identity_private(name: &str) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::Modifiable(false),
        Attribute::Copyable(false),
    ];
    template.extend(Role::Identity.name_of(name));
    template
}

/// A KEK during the ceremony: it may leave, and it is gone with the session.
pub(super) fn kek_made(kek: KekId, profile: &DeviceProfile) -> Vec<Attribute> {
    let mut template = kek_common(kek, profile.limits_mechanisms());
    template.extend([
        Attribute::ValueLen(Ulong::new(32)),
        Attribute::Token(false),
        Attribute::Extractable(true),
        Attribute::Modifiable(false),
        Attribute::Copyable(false),
    ]);
    template
}

/// A KEK that was accepted; as a session object first, to try the canary.
pub(super) fn kek_accepted(
    kek: KekId,
    stay: Stay,
    profile: &DeviceProfile,
    form: UnwrapForm,
) -> Vec<Attribute> {
    let mut template = kek_common(kek, profile.limits_mechanisms());
    template.extend([
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(stay == Stay::Token),
        Attribute::Extractable(false),
    ]);
    if form.value_len {
        template.push(Attribute::ValueLen(Ulong::new(32)));
    }
    if form.modifiable {
        // Last: SoftHSM refuses whatever stands behind it.
        template.push(Attribute::Modifiable(false));
    }
    template
}

fn kek_common(kek: KekId, limited: bool) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Id(kek.0.to_vec()),
        Attribute::Label(kek_label(kek)),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
    ];
    if limited {
        template.push(Attribute::AllowedMechanisms(vec![MechanismType::AES_GCM]));
    }
    template
}

/// What the labels of KEKs begin with.
pub(super) const KEK_LABEL: &[u8] = b"strongroom/kek/";

fn kek_label(kek: KekId) -> Vec<u8> {
    [KEK_LABEL, kek.to_string().as_bytes()].concat()
}

/// What the device has to say about a KEK before it is used.
pub(super) fn kek_expected(profile: &DeviceProfile) -> Vec<Attribute> {
    let mut expected = vec![
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
    ];
    if profile.limits_mechanisms() {
        expected.push(Attribute::AllowedMechanisms(vec![MechanismType::AES_GCM]));
    }
    expected
}

/// A KEK of a device without AES-GCM: its share for the enrolment key of `node`, which decrypts it.
pub(super) fn kek_sealed(kek: KekId, node: &str, share: Vec<u8>) -> Vec<Attribute> {
    let mut template = kek_sealed_search(kek);
    template.extend([
        Attribute::Private(true),
        Attribute::Application(node.as_bytes().to_vec()),
        Attribute::Value(share),
    ]);
    template
}

pub(super) fn kek_sealed_search(kek: KekId) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Label(kek_label(kek)),
    ]
}

/// The name of keys for trying the device.
pub(super) const TRIAL: KekId = KekId(*b"strongroom trial");

/// A key for trying what AES-GCM is like on the device; it protects nothing.
pub(super) fn trial(limited: bool) -> Vec<Attribute> {
    let mut template = kek_common(TRIAL, limited);
    template.extend([
        Attribute::ValueLen(Ulong::new(32)),
        Attribute::Token(false),
        Attribute::Extractable(false),
    ]);
    template
}

/// A key for trying whether the device enforces what it was told; it protects nothing.
pub(super) fn throwaway() -> Vec<Attribute> {
    vec![
        Attribute::ValueLen(Ulong::new(32)),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(true),
    ]
}

/// The attack that the unwrap template has to stop: a key that could be read or wrapped onward.
pub(super) fn readable() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
    ]
}

pub(super) fn recipient(modulus: Vec<u8>, exponent: Vec<u8>) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Token(false),
        Attribute::Private(false),
        Attribute::Wrap(true),
        Attribute::Encrypt(false),
        Attribute::Verify(false),
        Attribute::Modulus(modulus),
        Attribute::PublicExponent(exponent),
    ]
}

/// Finds token objects only: what a ceremony left in a session is none of our keys.
pub(super) fn search(class: ObjectClass, id: Vec<u8>) -> Vec<Attribute> {
    vec![Attribute::Class(class), Attribute::Token(true), Attribute::Id(id)]
}

//! What the codes of PKCS#11 mean for the ladder.

use cryptoki::error::{Error, RvError};

use crate::HsmError;
use crate::contract::Fault;

/// Sorts an error by what would help. Codes that a bad blob and a bad device share count as the
/// device's here; who opened a blob says so with [`suspect`].
pub(super) fn classify(error: &Error) -> Fault {
    let what = error.to_string();
    let Error::Pkcs11(code, _) = error else { return Fault::Device(what) };
    match code {
        RvError::SessionHandleInvalid
        | RvError::SessionClosed
        | RvError::OperationActive
        | RvError::OperationNotInitialized
        | RvError::BufferTooSmall => Fault::Session(what),

        RvError::SessionCount | RvError::HostMemory | RvError::DeviceMemory => Fault::Full(what),

        RvError::UserNotLoggedIn
        | RvError::ObjectHandleInvalid
        | RvError::KeyHandleInvalid
        | RvError::WrappingKeyHandleInvalid
        | RvError::UnwrappingKeyHandleInvalid => Fault::Login(what),

        RvError::PinIncorrect
        | RvError::PinLocked
        | RvError::PinExpired
        | RvError::PinInvalid
        | RvError::PinLenRange
        | RvError::FunctionCanceled
        | RvError::FunctionRejected
        | RvError::Cancel
        | RvError::SessionReadOnly
        | RvError::TokenWriteProtected => Fault::Final(HsmError::Device(what)),

        RvError::MechanismInvalid
        | RvError::MechanismParamInvalid
        | RvError::ArgumentsBad
        | RvError::AttributeReadOnly
        | RvError::AttributeTypeInvalid
        | RvError::AttributeValueInvalid
        | RvError::AttributeSensitive
        | RvError::TemplateIncomplete
        | RvError::TemplateInconsistent
        | RvError::KeySizeRange
        | RvError::KeyTypeInconsistent
        | RvError::KeyFunctionNotPermitted
        | RvError::ActionProhibited
        | RvError::KeyUnextractable
        | RvError::KeyNotWrappable
        | RvError::KeyNotNeeded
        | RvError::FunctionNotSupported
        | RvError::UserAnotherAlreadyLoggedIn
        | RvError::SessionReadOnlyExists
        | RvError::SessionReadWriteSoExists => Fault::Final(HsmError::Refused(what)),

        RvError::WrappedKeyInvalid | RvError::WrappedKeyLenRange => {
            Fault::Final(HsmError::BadShare(what))
        }

        // GeneralError, DeviceError, TokenNotPresent, CryptokiNotInitialized, vendor codes and all
        // that are not listed: in doubt it is the device.
        _ => Fault::Device(what),
    }
}

/// The same after an attempt to open a blob, where the canary has to decide.
pub(super) fn suspect(error: &Error) -> Fault {
    match classify(error) {
        Fault::Device(what) if !is_gone(error) => Fault::Suspect(what),
        other => other,
    }
}

/// Whether a handle that was remembered is worth nothing any more.
pub(super) fn is_stale(error: &Error) -> bool {
    matches!(error, Error::Pkcs11(RvError::ObjectHandleInvalid | RvError::KeyHandleInvalid, _))
}

fn is_gone(error: &Error) -> bool {
    matches!(
        error,
        Error::Pkcs11(
            RvError::DeviceRemoved
                | RvError::TokenNotPresent
                | RvError::TokenNotRecognized
                | RvError::SlotIdInvalid
                | RvError::CryptokiNotInitialized,
            _
        )
    )
}

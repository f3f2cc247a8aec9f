//! stub
use crate::contract::{Fault, Hsm, Rung, Session};
use crate::{Info, OpenError};
use secrecy::SecretString;
use std::path::Path;
pub(crate) enum Token {}
impl Token {
    pub(crate) fn open(
        _m: &Path,
        _l: String,
        _s: Option<String>,
        _p: SecretString,
    ) -> Result<Self, OpenError> {
        Err(OpenError::Unusable { what: "PKCS#11 tokens are not built in yet".to_owned() })
    }
}
impl Hsm for Token {
    fn info(&self) -> Info {
        match *self {}
    }
    fn session(&self) -> Result<Box<dyn Session>, Fault> {
        match *self {}
    }
    fn recover(&self, _r: Rung, _s: u64) -> Result<(), Fault> {
        match *self {}
    }
    fn generation(&self) -> u64 {
        match *self {}
    }
    fn works(&self) {
        match *self {}
    }
    fn close(&self) {
        match *self {}
    }
}

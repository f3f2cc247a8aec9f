//! Pages of lists: `page_size` and `page_token`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use custody::Page;
use wire::{PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX};

use crate::call::Call;
use crate::problem::Refusal;
use crate::route::Parameter;

pub(crate) const SIZE: Parameter =
    Parameter { name: "page_size", words: &[], describe: "1 to 1000; 100 when absent" };
pub(crate) const TOKEN: Parameter =
    Parameter { name: "page_token", words: &[], describe: "`next_page_token` of the page before" };

pub(crate) fn page(call: &Call) -> Result<Page, Refusal> {
    let size = call.parameter(SIZE.name).map_or(Ok(PAGE_SIZE_DEFAULT as usize), size)?;
    let after = call.parameter(TOKEN.name).map(open).transpose()?;
    Ok(Page { size, after })
}

/// The token that `open` reads: what comes last on this page, in a form nobody takes for a name.
pub(crate) fn token(last: Option<String>) -> Option<String> {
    last.map(|last| URL_SAFE_NO_PAD.encode(last))
}

fn size(text: &str) -> Result<usize, Refusal> {
    let max = PAGE_SIZE_MAX as usize;
    match text.parse::<usize>() {
        Ok(size) if (1..=max).contains(&size) => Ok(size),
        Ok(size) => Err(Refusal::invalid(format!("`page_size` is {size}, allowed are 1 to {max}"))),
        Err(_) => Err(Refusal::malformed("`page_size` is a number")),
    }
}

fn open(token: &str) -> Result<String, Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| Refusal::malformed("`page_token` is not one that this list gave"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip() {
        let given = token(Some("payments.card-pan_v2".to_owned())).unwrap();
        assert_eq!(open(&given).unwrap(), "payments.card-pan_v2");
        assert!(open("***").is_err());
        assert_eq!(token(None), None);
    }

    #[test]
    fn sizes_have_bounds() {
        assert_eq!(size("1").unwrap(), 1);
        assert_eq!(size("1000").unwrap(), 1000);
        for bad in ["0", "1001", "-1", "x", ""] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}

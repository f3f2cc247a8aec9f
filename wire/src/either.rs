//! Objects whose first field tells which of two shapes they have.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{CowStrDeserializer, MapAccessDeserializer};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, Visitor};

/// `{"<name>": T}`, or the fields of `U`.
pub(crate) enum Either<T, U> {
    Named(T),
    Fields(U),
}

/// Reads either `{"<name>": T}` or a `U`.
///
/// serde's `untagged` would do with two drawbacks: its errors do not name the field at fault, and
/// it buffers the object, plaintexts included, in memory that nobody wipes.
pub(crate) fn named_or_fields<'de, D, T, U>(
    deserializer: D,
    name: &'static str,
) -> Result<Either<T, U>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
    U: Deserialize<'de>,
{
    deserializer.deserialize_map(Shape { name, shapes: PhantomData })
}

struct Shape<T, U> {
    name: &'static str,
    shapes: PhantomData<(T, U)>,
}

impl<'de, T: Deserialize<'de>, U: Deserialize<'de>> Visitor<'de> for Shape<T, U> {
    type Value = Either<T, U>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object, or one with `{}` only", self.name)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let first: Option<Cow<'de, str>> = map.next_key()?;
        if first.as_deref() != Some(self.name) {
            let rest = MapAccessDeserializer::new(Prepend { first, rest: map });
            return U::deserialize(rest).map(Either::Fields);
        }
        let value = map.next_value()?;
        match map.next_key::<Cow<'de, str>>()? {
            None => Ok(Either::Named(value)),
            Some(other) => Err(A::Error::custom(format_args!(
                "unknown field `{other}`, `{}` stands alone",
                self.name
            ))),
        }
    }
}

/// Gives the key that was read ahead back to the map it came from.
struct Prepend<'de, A> {
    first: Option<Cow<'de, str>>,
    rest: A,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Prepend<'de, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        match self.first.take() {
            Some(key) => seed.deserialize(CowStrDeserializer::new(key)).map(Some),
            None => self.rest.next_key_seed(seed),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.rest.next_value_seed(seed)
    }
}

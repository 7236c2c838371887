//! Mappings whose keys several types share: a type takes its own and hands the rest to the one that it is made of.
//!
//! serde's `flatten` does the same but forgets lines and columns, and cannot refuse what is not known.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error, MapAccess, Visitor};

/// A type that is read key by key.
pub(super) trait Keys: Default {
    /// All keys that it takes.
    fn keys() -> Vec<&'static str>;

    /// Reads the value of a key; false where the key is none of its own.
    fn read<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error>;
}

/// Implements [`Keys`] and `Deserialize`: the fields that are keys, and the field, if any, that takes the rest.
macro_rules! keys {
    ($type:ty: $($key:ident),* $(; $rest:ident: $rest_type:ty)?) => {
        impl $crate::spec::keys::Keys for $type {
            fn keys() -> Vec<&'static str> {
                #[allow(unused_mut)]
                let mut keys = vec![$(stringify!($key)),*];
                $(keys.append(&mut <$rest_type>::keys());)?
                keys
            }

            fn read<'de, A: serde::de::MapAccess<'de>>(
                &mut self,
                key: &str,
                map: &mut A,
            ) -> Result<bool, A::Error> {
                $(if key == stringify!($key) {
                    self.$key = map.next_value()?;
                    return Ok(true);
                })*
                $(if self.$rest.read(key, map)? {
                    return Ok(true);
                })?
                Ok(false)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                $crate::spec::keys::read(deserializer)
            }
        }
    };
}

pub(super) use keys;

/// Reads a mapping; keys that nothing takes are refused, with the targets that take them.
pub(super) fn read<'de, T: Keys, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_map(OfKeys(PhantomData))
}

struct OfKeys<T>(PhantomData<T>);

impl<'de, T: Keys> Visitor<'de> for OfKeys<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a mapping of {}", T::keys().join(", "))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        let mut value = T::default();
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !value.read(&key, &mut map)? {
                return Err(A::Error::custom(refusal::<T>(&key)));
            }
            if let Some(twice) = seen.replace(key) {
                return Err(A::Error::custom(format!("duplicate field `{twice}`")));
            }
        }
        Ok(value)
    }
}

fn refusal<T: Keys>(key: &str) -> String {
    let takers: Vec<String> = super::TargetSpec::takers(key).map(|target| target.to_string()).collect();
    let known: Vec<String> = T::keys().iter().map(|key| format!("`{key}`")).collect();
    match takers.as_slice() {
        [] => format!("unknown field `{key}`, expected one of {}", known.join(", ")),
        takers => format!("{key}: has a meaning for {} alone", takers.join(" and ")),
    }
}

//! How types change: versions of a type, and the way from each to the next.
//!
//! A type that was changed keeps its old form beside it, under another name, and says how to come from there. Forms make a
//! chain, `V1 -> V2 -> V3`; a checkpoint with any of them is brought to the newest ([`migrate`](crate::migrate)). The
//! derive macro of the facade crate writes these implementations.

use std::any::type_name;
use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::schema::{Schema, short};
use crate::trace::trace;
use crate::{Result, StateError, codec};

/// Why a value of an old form has no new one.
pub type EvolveError = Box<dyn std::error::Error + Send + Sync>;

/// A type with versions, for keys and for what is kept of them, or parts of either.
///
/// ```
/// use millstream_state::evolve::{Evolve, EvolveError, First};
/// # use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct OrderV1 {
///     euros: i64,
/// }
///
/// impl Evolve for OrderV1 {
///     type Previous = First;
///     const VERSION: u32 = 1;
///     fn evolve(none: First) -> Result<Self, EvolveError> {
///         match none {}
///     }
/// }
///
/// #[derive(Serialize, Deserialize)]
/// struct Order {
///     cents: u64,
/// }
///
/// impl Evolve for Order {
///     type Previous = OrderV1;
///     const VERSION: u32 = 2;
///     fn evolve(old: OrderV1) -> Result<Self, EvolveError> {
///         Ok(Order { cents: u64::try_from(old.euros)? * 100 })
///     }
/// }
/// ```
pub trait Evolve: Serialize + DeserializeOwned + 'static {
    /// The form before this one; [`First`], if there is none, or none that a checkpoint may still have.
    type Previous: Evolve;

    /// One more than that of the form before; at least 1.
    const VERSION: u32;

    /// The value in this form.
    ///
    /// # Errors
    /// When it has none. Nothing is restored then; the error names the entry.
    fn evolve(previous: Self::Previous) -> Result<Self, EvolveError>;
}

/// What comes before the first version: nothing. It has no values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum First {}

impl Evolve for First {
    type Previous = First;
    const VERSION: u32 = 0;

    fn evolve(none: First) -> Result<Self, EvolveError> {
        Ok(none)
    }
}

/// One version of a type.
#[derive(Clone, Copy, Debug)]
struct Form {
    version: u32,
    previous: Option<&'static str>,
    schema: fn(&Migrations) -> Schema,
    /// From the bytes of the form before.
    upgrade: fn(&[u8]) -> Result<Vec<u8>>,
}

/// All types with versions that a job knows.
#[derive(Clone, Debug, Default)]
pub struct Migrations {
    /// By the full names of types.
    forms: BTreeMap<&'static str, Form>,
    wrong: Vec<String>,
}

impl Migrations {
    /// Takes in `T` and all forms before it.
    pub fn add<T: Evolve>(&mut self) {
        let name = type_name::<T>();
        if T::VERSION == 0 || self.forms.contains_key(name) {
            return;
        }
        let (before, has_before) = (T::Previous::VERSION, type_name::<T::Previous>() != type_name::<First>());
        if has_before && before.checked_add(1) != Some(T::VERSION) {
            self.wrong.push(format!(
                "`{}` is version {} and comes from `{}`, which is version {before}: versions must follow each other",
                short(name),
                T::VERSION,
                short(type_name::<T::Previous>()),
            ));
        }
        let form = Form {
            version: T::VERSION,
            previous: has_before.then(type_name::<T::Previous>),
            schema: trace::<T>,
            upgrade: upgrade::<T>,
        };
        self.forms.insert(name, form);
        self.add::<T::Previous>();
    }

    /// What is wrong with the versions that were taken in.
    pub fn wrong(&self) -> Option<&str> {
        self.wrong.first().map(String::as_str)
    }

    /// The version of a type, by its full name.
    pub(crate) fn version_of(&self, name: &str) -> Option<(&'static str, u32)> {
        self.forms.get_key_value(name).map(|(name, form)| (*name, form.version))
    }

    /// The forms of a type from the newest, itself, to the oldest, each by its full name.
    pub(crate) fn chain(&self, name: &str) -> Vec<&'static str> {
        let mut chain = Vec::new();
        let mut next = self.forms.get_key_value(name);
        while let Some((name, form)) = next
            && !chain.contains(name)
        {
            chain.push(*name);
            next = form.previous.and_then(|previous| self.forms.get_key_value(previous));
        }
        chain
    }

    /// The schema of one form, whose outermost part is a [`Schema::Version`] unless it cannot be traced.
    pub(crate) fn schema_of(&self, name: &str) -> Option<Schema> {
        self.forms.get(name).map(|form| (form.schema)(self))
    }

    /// Brings a value from the form before to the form `name`.
    pub(crate) fn upgrade(&self, name: &str, bytes: &[u8]) -> Result<Vec<u8>> {
        let form = self.forms.get(name).ok_or_else(|| error(name, "nothing is known of it".into()))?;
        (form.upgrade)(bytes)
    }
}

fn error(name: &str, reason: String) -> StateError {
    StateError::Codec { what: format!("bringing a value to `{}`", short(name)), reason }
}

fn upgrade<T: Evolve>(bytes: &[u8]) -> Result<Vec<u8>> {
    let old: T::Previous = codec::decode(bytes)?;
    let new = T::evolve(old).map_err(|reason| error(type_name::<T>(), reason.to_string()))?;
    codec::encode(&new)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Implements [`Evolve`] as the derive macro does.
    macro_rules! evolves {
        ($type:ty, $version:expr) => {
            impl $crate::evolve::Evolve for $type {
                type Previous = $crate::evolve::First;
                const VERSION: u32 = $version;
                fn evolve(none: $crate::evolve::First) -> Result<Self, $crate::evolve::EvolveError> {
                    match none {}
                }
            }
        };
        ($type:ty, $version:expr, $previous:ty, $by:expr) => {
            impl $crate::evolve::Evolve for $type {
                type Previous = $previous;
                const VERSION: u32 = $version;
                fn evolve(previous: $previous) -> Result<Self, $crate::evolve::EvolveError> {
                    #[allow(clippy::redundant_closure_call)]
                    ($by)(previous)
                }
            }
        };
    }
    pub(crate) use evolves;

    #[derive(Serialize, Deserialize)]
    struct A(u8);
    #[derive(Serialize, Deserialize)]
    struct B(u8);
    #[derive(Serialize, Deserialize)]
    struct C(u8);
    evolves!(A, 3);
    evolves!(B, 4, A, |a: A| Ok(B(a.0 + 1)));
    evolves!(C, 6, B, |b: B| if b.0 > 100 { Err("too much".into()) } else { Ok(C(b.0 * 2)) });

    #[test]
    fn a_chain_begins_anywhere_and_has_no_gaps() {
        let mut migrations = Migrations::default();
        migrations.add::<B>();
        assert_eq!(migrations.wrong(), None);
        assert_eq!(migrations.chain(type_name::<B>()), [type_name::<B>(), type_name::<A>()]);
        migrations.add::<C>();
        let wrong = migrations.wrong().unwrap();
        assert_eq!(wrong, "`C` is version 6 and comes from `B`, which is version 4: versions must follow each other");
        assert!(migrations.chain("other").is_empty());
        assert_eq!(migrations.version_of(type_name::<First>()), None);
    }

    #[test]
    fn values_go_from_form_to_form() {
        let mut migrations = Migrations::default();
        migrations.add::<C>();
        let two = migrations.upgrade(type_name::<B>(), &[7]).unwrap();
        assert_eq!((two.as_slice(), migrations.upgrade(type_name::<C>(), &two).unwrap()), (&[8][..], vec![16]));
        let refused = migrations.upgrade(type_name::<C>(), &[101]).unwrap_err().to_string();
        assert_eq!(refused, "bringing a value to `C`: too much");
        assert!(migrations.upgrade(type_name::<C>(), &[1, 2]).is_err(), "bytes left over");
    }
}

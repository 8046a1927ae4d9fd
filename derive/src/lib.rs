//! `#[derive(Evolve)]`: versions of a type that a job keeps, and the way from each to the next.
//!
//! Use it from the facade crate, `millstream::prelude::Evolve`, beside the trait of the same name that it implements.

mod attributes;
mod evolve;

use proc_macro::TokenStream;

/// Implements `Evolve` for a type.
///
/// On the type:
///
/// * nothing: it is version 1;
/// * `#[evolve(from = OrderV1)]`: it comes from that type, and is one version more;
/// * `#[evolve(version = 3)]`: the version; beside `from`, it is checked.
///
/// What it comes from has the same fields or variants, but for these. On a field:
///
/// * nothing: its value comes from the field of that name, by `From`, so numbers may become wider;
/// * `#[evolve(renamed = old)]`: from a field of another name;
/// * `#[evolve(default)]`: it is new, and has its type's default; `#[evolve(default = 7)]`: this value;
/// * `#[evolve(with = path)]`: the value is made by this function, from the old one;
/// * `#[evolve(try_from)]`: by `TryFrom`; a value that does not fit fails the migration.
///
/// On a variant of an enum: `#[evolve(added)]`, if what it comes from does not have it; `#[evolve(renamed = Old)]`.
///
/// A field that is no longer there is dropped. A variant that is no longer there needs an implementation by hand.
#[proc_macro_derive(Evolve, attributes(evolve))]
pub fn derive_evolve(input: TokenStream) -> TokenStream {
    let input = syn::parse_macro_input!(input as syn::DeriveInput);
    evolve::expand(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}

//! From a type to its `impl Evolve`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Data, DataEnum, DeriveInput, Error, Field, Fields, Index, Member, Path, PathArguments, Result, Type, TypePath,
    parse_quote,
};

use crate::attributes::{OnField, OnType, OnVariant, Source};

pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let on = OnType::of(&input.attrs)?;
    let name = &input.ident;
    let body = match (&input.data, &on.from) {
        (Data::Union(_), _) => return Err(Error::new_spanned(input, "a union has no versions")),
        (_, None) => {
            refuse_attributes(&input.data)?;
            quote! { match previous {} }
        }
        (Data::Struct(data), Some(_)) => {
            let made = fields(&data.fields, |member| quote! { previous.#member })?;
            quote! { ::core::result::Result::Ok(Self #made) }
        }
        (Data::Enum(data), Some(from)) => {
            let arms = arms(data, from)?;
            quote! { ::core::result::Result::Ok(match previous { #arms }) }
        }
    };
    let previous = match &on.from {
        Some(from) => quote! { #from },
        None => quote! { ::millstream::evolve::First },
    };
    let before = quote! { <#previous as ::millstream::evolve::Evolve>::VERSION };
    let version = match (&on.version, &on.from) {
        (Some(version), None) => quote! { #version },
        (None, None) => quote! { 1 },
        (None, Some(_)) => quote! { #before + 1 },
        (Some(version), Some(_)) => {
            let text = format!("`{name}` must be one version more than what it comes from");
            quote! { { assert!(#before + 1 == #version, #text); #version } }
        }
    };
    // Wrong versions are found where they stand, if the type is one.
    let check = input.generics.params.is_empty().then(|| {
        quote! { const _: u32 = <#name as ::millstream::evolve::Evolve>::VERSION; }
    });
    // As serde's derives do; what is kept must be cloned and sent anyway.
    let mut generics = input.generics.clone();
    for parameter in generics.type_params_mut() {
        parameter.bounds.push(parse_quote! { ::millstream::state::snapshot::Value });
    }
    let (generics, arguments, bounds) = generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #generics ::millstream::evolve::Evolve for #name #arguments #bounds {
            type Previous = #previous;
            const VERSION: u32 = #version;
            fn evolve(
                previous: #previous,
            ) -> ::core::result::Result<Self, ::millstream::evolve::EvolveError> {
                #body
            }
        }
        #check
    })
}

/// A first form comes from nothing.
fn refuse_attributes(data: &Data) -> Result<()> {
    let text = "this needs `#[evolve(from = …)]` on the type";
    let check = |fields: &Fields| {
        for field in fields {
            if !OnField::of(&field.attrs)?.is_plain() {
                return Err(Error::new_spanned(field, text));
            }
        }
        Ok(())
    };
    match data {
        Data::Struct(data) => check(&data.fields),
        Data::Enum(data) => data.variants.iter().try_for_each(|variant| {
            let on = OnVariant::of(&variant.attrs)?;
            if on.added || on.renamed.is_some() {
                return Err(Error::new_spanned(variant, text));
            }
            check(&variant.fields)
        }),
        Data::Union(_) => Ok(()),
    }
}

/// What a field is called, or its number.
fn member(number: usize, field: &Field) -> Member {
    field.ident.clone().map_or(Member::Unnamed(Index::from(number)), Member::Named)
}

/// The fields of a new value, in braces; `old` is the old value of a field.
fn fields(fields: &Fields, old: impl Fn(&Member) -> TokenStream) -> Result<TokenStream> {
    let made = fields.iter().enumerate().map(|(number, field)| {
        let (on, member) = (OnField::of(&field.attrs)?, member(number, field));
        let value = value(&on, &member, &old(on.renamed.as_ref().unwrap_or(&member)));
        Ok(quote! { #member: #value })
    });
    let made = made.collect::<Result<Vec<_>>>()?;
    Ok(quote! { { #(#made),* } })
}

fn value(on: &OnField, member: &Member, old: &TokenStream) -> TokenStream {
    match &on.source {
        Source::Old => quote! { ::core::convert::From::from(#old) },
        Source::With(path) => quote! { #path(#old) },
        Source::Made(None) => quote! { ::core::default::Default::default() },
        Source::Made(Some(value)) => quote! { #value },
        Source::Try => {
            let field = match member {
                Member::Named(name) => name.to_string(),
                Member::Unnamed(number) => number.index.to_string(),
            };
            let text = format!("field `{field}`: {{}}");
            quote! {
                ::core::convert::TryFrom::try_from(#old).map_err(|error| ::std::format!(#text, error))?
            }
        }
    }
}

/// An arm for every variant that was there before.
fn arms(data: &DataEnum, from: &Type) -> Result<TokenStream> {
    let before = path_of(from)?;
    let mut arms = TokenStream::new();
    for variant in &data.variants {
        let (on, name) = (OnVariant::of(&variant.attrs)?, &variant.ident);
        if on.added {
            continue;
        }
        let was = on.renamed.as_ref().unwrap_or(name);
        // Every old field that is used gets a name of its own.
        let local = |member: &Member| match member {
            Member::Named(name) => format_ident!("old_{}", name),
            Member::Unnamed(number) => format_ident!("old_{}", number.index),
        };
        let mut bound = Vec::new();
        for (number, field) in variant.fields.iter().enumerate() {
            let on = OnField::of(&field.attrs)?;
            if !matches!(on.source, Source::Made(_)) {
                let member = on.renamed.unwrap_or(member(number, field));
                let local = local(&member);
                bound.push(quote! { #member: #local });
            }
        }
        let made = fields(&variant.fields, |member| {
            let local = local(member);
            quote! { #local }
        })?;
        arms.extend(quote! { #before::#was { #(#bound,)* .. } => Self::#name #made, });
    }
    Ok(arms)
}

/// The path of an enum in a pattern, which has no arguments.
fn path_of(of: &Type) -> Result<Path> {
    let Type::Path(TypePath { qself: None, path, .. }) = of else {
        return Err(Error::new_spanned(of, "an enum comes from a type with a plain name"));
    };
    let mut path = path.clone();
    path.segments.iter_mut().for_each(|segment| segment.arguments = PathArguments::None);
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let input = syn::parse_str(text).expect("it parses");
        expand(&input).expect_err(text).to_string()
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (text, expected) in [
            ("#[evolve(version = 0)] struct A;", "versions begin with 1"),
            ("#[evolve(form = B)] struct A;", "a type can have `from = Type`"),
            ("#[evolve(from = B, from = C)] struct A;", "it is there twice"),
            ("#[evolve(from = B)] union A { a: u8 }", "a union has no versions"),
            ("struct A { #[evolve(default)] a: u8 }", "needs `#[evolve(from = …)]`"),
            ("enum A { #[evolve(added)] B }", "needs `#[evolve(from = …)]`"),
            ("enum A { B(#[evolve(try_from)] u8) }", "needs `#[evolve(from = …)]`"),
            ("#[evolve(from = B)] struct A { #[evolve(rename = b)] a: u8 }", "a field can have `renamed = old`"),
            ("#[evolve(from = B)] struct A { #[evolve(default, renamed = b)] a: u8 }", "comes from no other"),
            ("#[evolve(from = B)] struct A { #[evolve(default, try_from)] a: u8 }", "it is there twice"),
            ("#[evolve(from = B)] enum A { #[evolve(new)] B }", "a variant can have `added`"),
            ("#[evolve(from = (u8, u8))] enum A { B }", "comes from a type with a plain name"),
        ] {
            let error = refused(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}

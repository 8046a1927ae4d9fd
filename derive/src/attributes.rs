//! What stands in `#[evolve(…)]`.

use syn::meta::ParseNestedMeta;
use syn::{Attribute, Error, Expr, Ident, LitInt, LitStr, Member, Path, Result, Token, Type};

/// On a type.
#[derive(Default)]
pub(crate) struct OnType {
    pub(crate) from: Option<Type>,
    pub(crate) version: Option<LitInt>,
}

/// Where the value of a field comes from.
pub(crate) enum Source {
    /// The field of before, by `From`.
    Old,
    /// The field of before, by `TryFrom`.
    Try,
    /// The field of before, by a function.
    With(Path),
    /// Nowhere: it is made.
    Made(Option<Expr>),
}

/// On a field.
pub(crate) struct OnField {
    pub(crate) source: Source,
    pub(crate) renamed: Option<Member>,
}

/// On a variant.
#[derive(Default)]
pub(crate) struct OnVariant {
    pub(crate) added: bool,
    pub(crate) renamed: Option<Ident>,
}

/// Parses what stands behind `=`: as it is, or in quotes.
fn value<T: syn::parse::Parse>(meta: &ParseNestedMeta<'_>) -> Result<T> {
    let input = meta.value()?;
    match input.peek(LitStr) {
        true => input.parse::<LitStr>()?.parse(),
        false => input.parse(),
    }
}

fn parse(attributes: &[Attribute], mut each: impl FnMut(&str, &ParseNestedMeta<'_>) -> Result<()>) -> Result<()> {
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("evolve")) {
        attribute.parse_nested_meta(|meta| {
            let name = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
            each(&name, &meta)
        })?;
    }
    Ok(())
}

fn once<T>(place: &mut Option<T>, value: T, meta: &ParseNestedMeta<'_>) -> Result<()> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(meta.error("it is there twice")),
    }
}

impl OnType {
    pub(crate) fn of(attributes: &[Attribute]) -> Result<Self> {
        let mut on = OnType::default();
        parse(attributes, |name, meta| match name {
            "from" => once(&mut on.from, value(meta)?, meta),
            "version" => {
                let version: LitInt = value(meta)?;
                if version.base10_parse::<u32>()? == 0 {
                    return Err(Error::new(version.span(), "versions begin with 1"));
                }
                once(&mut on.version, version, meta)
            }
            _ => Err(meta.error("a type can have `from = Type` and `version = 2`")),
        })?;
        Ok(on)
    }
}

impl OnField {
    pub(crate) fn of(attributes: &[Attribute]) -> Result<Self> {
        let (mut source, mut renamed) = (None, None);
        parse(attributes, |name, meta| match name {
            "renamed" => once(&mut renamed, value(meta)?, meta),
            "try_from" => once(&mut source, Source::Try, meta),
            "with" => once(&mut source, Source::With(value(meta)?), meta),
            "default" => {
                let made = if meta.input.peek(Token![=]) { Some(meta.value()?.parse()?) } else { None };
                once(&mut source, Source::Made(made), meta)
            }
            _ => {
                Err(meta
                    .error("a field can have `renamed = old`, `default`, `default = value`, `with = path`, `try_from`"))
            }
        })?;
        if let (Some(Source::Made(_)), Some(renamed)) = (&source, &renamed) {
            return Err(Error::new_spanned(renamed, "a field with a default comes from no other"));
        }
        Ok(OnField { source: source.unwrap_or(Source::Old), renamed })
    }

    /// Whether it says nothing.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.source, Source::Old) && self.renamed.is_none()
    }
}

impl OnVariant {
    pub(crate) fn of(attributes: &[Attribute]) -> Result<Self> {
        let mut on = OnVariant::default();
        parse(attributes, |name, meta| match name {
            "added" => {
                on.added = true;
                Ok(())
            }
            "renamed" => once(&mut on.renamed, value(meta)?, meta),
            _ => Err(meta.error("a variant can have `added` and `renamed = Old`")),
        })?;
        Ok(on)
    }
}

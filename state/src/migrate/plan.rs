//! Decides how state of one form becomes state of another, from their schemas alone.

use crate::Result;
use crate::evolve::Migrations;
use crate::manifest::StateEntry;
use crate::schema::{Field, Schema, changed_type, differences, short};
use crate::walk::Plan;

use super::StateForm;

/// What is to be done with the states of one operator.
#[derive(Clone, Debug)]
pub struct OperatorPlan(pub(super) Vec<StatePlan>);

#[derive(Clone, Debug)]
pub(super) struct StatePlan {
    pub(super) key: Plan,
    pub(super) value: Plan,
}

impl OperatorPlan {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(StatePlan::is_empty)
    }
}

impl StatePlan {
    pub(super) fn is_empty(&self) -> bool {
        self.key == Plan::Same && self.value == Plan::Same
    }
}

/// Why state cannot be brought to the form that the program has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differences {
    /// Which of the operator's states, as `slices`.
    pub state: String,
    /// In which way it differs.
    pub found: Vec<String>,
    /// The name of the type that was changed, if it has one.
    pub changed: Option<String>,
    /// The operator keeps other kinds of state, of whatever types.
    pub other_kinds: bool,
}

/// Decides how state as `old` says becomes state as `new` says. `same_names` is whether both consist of types of the same names,
/// by which types are known that cannot be traced.
///
/// # Errors
/// In which way they differ, if there is no way from one to the other.
pub fn plan(
    old: &[StateEntry],
    new: &[StateForm],
    same_names: bool,
    migrations: &Migrations,
) -> Result<OperatorPlan, Differences> {
    let kinds = |all: &mut dyn Iterator<Item = &String>| all.cloned().collect::<Vec<_>>().join(", ");
    let was = kinds(&mut old.iter().map(|state| &state.kind));
    let is = kinds(&mut new.iter().map(|state| &state.kind));
    if was != is {
        let found = vec![format!("it kept {was}, and now keeps {is}")];
        return Err(Differences { state: was, found, changed: None, other_kinds: true });
    }
    let mut plans = Vec::new();
    for (old, new) in old.iter().zip(new) {
        let mut both = StatePlan { key: Plan::Same, value: Plan::Same };
        if let (Some(old_of), Some(new_of)) = (&old.entries, &new.entries) {
            let mut found = Vec::new();
            let mut changed = None;
            for (old, new, place, plan) in [
                (&old_of.key, &new_of.key, "the key", &mut both.key),
                (&old_of.value, &new_of.value, "the value", &mut both.value),
            ] {
                match (old.opaque().or(new.opaque()), same_names) {
                    (Some(_), true) => {}
                    (Some((_, why)), false) if old.canonical(false) != new.canonical(false) => {
                        found.push(format!(
                            "{place} was {old} and is now {new}, which is known by its name alone: {why}"
                        ));
                    }
                    _ => match (Planner { migrations, depth: 0 }.plan(old, new, place)) {
                        Ok(made) => *plan = made,
                        Err(reasons) => {
                            found.extend(reasons.into_iter().map(|reason| reason.text));
                            changed = changed.or_else(|| changed_type(old, new));
                        }
                    },
                }
            }
            if !found.is_empty() {
                return Err(Differences { state: old.kind.clone(), found, changed, other_kinds: false });
            }
        }
        plans.push(both);
    }
    Ok(OperatorPlan(plans))
}

struct Planner<'m> {
    migrations: &'m Migrations,
    depth: usize,
}

/// Deeper than any schema: forms that contain each other come to an end.
const MOST_DEPTH: usize = 200;

/// Why there is no way from one schema to another.
struct Reason {
    text: String,
    what: What,
}

#[derive(PartialEq, Eq)]
enum What {
    /// A difference in form; from further out it can be told better.
    Form,
    /// The part that goes back to the whole. It only counts where there is nothing else.
    Itself,
    /// Something about versions.
    Version,
}

type Planned = Result<Plan, Vec<Reason>>;

fn firm(text: String) -> Planned {
    Err(vec![Reason { text, what: What::Version }])
}

/// Says something more of the last difference.
fn said(mut reasons: Vec<Reason>, more: &str) -> Vec<Reason> {
    if let Some(last) = reasons.last_mut() {
        last.text = format!("{}, {more}", last.text);
        last.what = What::Version;
    }
    reasons
}

impl Planner<'_> {
    fn plan(&mut self, old: &Schema, new: &Schema, place: &str) -> Planned {
        // What goes back to something further out is only the same if that is.
        if old.canonical(true) == new.canonical(true) && !old.escapes(0) {
            return Ok(Plan::Same);
        }
        if self.depth == MOST_DEPTH {
            return firm(format!("{place} is too deep"));
        }
        self.depth += 1;
        let plan = match (old, new) {
            (_, Schema::Version { name, version, of }) => self.plan_version(old, (name, *version, of), place),
            (Schema::Version { name, version, .. }, _) => firm(format!(
                "{place} was written by version {version} of `{}`, and this program knows no version of it",
                short(name)
            )),
            (Schema::Named { of, .. }, Schema::Named { of: new, .. }) => self.plan(of, new, place).map(one),
            (Schema::Named { of, .. }, new) => self.plan(of, new, place).map(one),
            (old, Schema::Named { of, .. }) => self.plan(old, of, place),
            _ => self.plan_parts(old, new, place),
        };
        self.depth -= 1;
        plan
    }

    fn plan_parts(&mut self, old: &Schema, new: &Schema, place: &str) -> Planned {
        let differs = || {
            let found = differences(old, new, place);
            match found.is_empty() {
                true => {
                    let text = format!("{place} contains itself, so it can only be migrated as a whole");
                    Err(vec![Reason { text, what: What::Itself }])
                }
                false => Err(found.into_iter().map(|text| Reason { text, what: What::Form }).collect()),
            }
        };
        let names = |fields: &'_ [Field]| fields.iter().map(|field| field.name.clone()).collect::<Vec<_>>();
        let (was, is) = (old.parts(), new.parts());
        let places: Option<Vec<String>> = match (old, new) {
            (Schema::Struct { fields: was, .. }, Schema::Struct { name, fields: is }) => (names(was) == names(is))
                .then(|| is.iter().map(|field| format!("field `{}` of `{name}`", field.name)).collect()),
            (Schema::Enum { variants: was, .. }, Schema::Enum { name, variants: is }) => (names(was) == names(is))
                .then(|| is.iter().map(|variant| format!("variant `{name}::{}`", variant.name)).collect()),
            (Schema::Array(_, was), Schema::Array(_, is)) if was != is => None,
            _ => {
                (std::mem::discriminant(old) == std::mem::discriminant(new) && was.len() == is.len() && !was.is_empty())
                    .then(|| vec![place.to_string(); was.len()])
            }
        };
        let Some(places) = places else { return differs() };
        let (mut plans, mut reasons) = (Vec::new(), Vec::new());
        for ((old, new), place) in was.into_iter().zip(is).zip(places) {
            match self.plan(old, new, &place) {
                Ok(plan) => plans.push(plan),
                Err(found) => reasons.extend(found),
            }
        }
        let has = |reasons: &[Reason], what| reasons.iter().any(|reason| reason.what == what);
        if reasons.is_empty() {
            return Ok(Plan::parts(plans));
        }
        if has(&reasons, What::Version) {
            reasons.retain(|reason| reason.what != What::Itself);
            return Err(reasons);
        }
        if has(&reasons, What::Form) { differs() } else { Err(reasons) }
    }

    fn plan_version(&mut self, old: &Schema, (name, version, of): (&str, u32, &Schema), place: &str) -> Planned {
        let shown = short(name);
        let forms = Forms::of(name, self.migrations);
        match old {
            Schema::Version { version: was, .. } if *was > version => firm(format!(
                "{place} was written by version {was} of `{shown}`, and this program knows version {version}"
            )),
            Schema::Version { version: was, of: old, .. } if *was == version => {
                let same = |found| said(found, &format!("and both are version {version} of `{shown}`"));
                self.plan(old, of, place).map_err(same)
            }
            Schema::Version { version: was, of: old, .. } => {
                let Some(from) = forms.0.iter().position(|form| form.version == *was) else {
                    let oldest = forms.0.first().map_or(version, |form| form.version);
                    return firm(format!(
                        "{place} was written by version {was} of `{shown}`, and this program goes back to version {oldest}"
                    ));
                };
                let form = &forms.0[from];
                let wrong = |found| said(found, &format!("in `{}`, version {was} of `{shown}`", short(form.name)));
                self.plan(old, &form.of, place).map(|plan| forms.evolve(from, plan)).map_err(wrong)
            }
            // From before it had versions: the oldest form that it is exactly, or else the oldest that it can become.
            old => {
                let line = old.canonical(false);
                let exact = (0..forms.0.len()).filter(|form| forms.0[*form].of.canonical(false) == line);
                for from in exact.chain(0..forms.0.len()) {
                    if let Ok(plan) = self.plan(old, &forms.0[from].of, place) {
                        return Ok(forms.evolve(from, plan));
                    }
                }
                let more = format!("and it is none of the older forms of `{shown}` either");
                let older = forms.0.len() > 1;
                self.plan(old, of, place).map_err(|found| if older { said(found, &more) } else { found })
            }
        }
    }
}

fn one(plan: Plan) -> Plan {
    Plan::parts(vec![plan])
}

/// All forms of a type, the oldest first.
struct Forms(Vec<Form>);

struct Form {
    name: &'static str,
    version: u32,
    of: Schema,
}

impl Forms {
    fn of(name: &str, migrations: &Migrations) -> Self {
        let form = |name| match migrations.schema_of(name) {
            Some(Schema::Version { version, of, .. }) => Some(Form { name, version, of: *of }),
            _ => None,
        };
        Forms(migrations.chain(name).into_iter().rev().filter_map(form).collect())
    }

    /// From form number `from` to the newest, after `plan`.
    fn evolve(&self, from: usize, plan: Plan) -> Plan {
        match self.0.get(from + 1..) {
            None | Some([]) => plan,
            Some(later) => Plan::Evolve(Box::new(plan), later.iter().map(|form| form.name).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Order, OrderV1, OrderV2, OrderV3, knowing};
    use super::*;
    use crate::evolve::tests::evolves;
    use crate::keyed::KeyedState;
    use crate::slices::SliceState;
    use crate::snapshot::{State, Value};
    use serde::{Deserialize, Serialize};

    /// What a program that knows `theirs` wrote of its state, and what one that knows `ours` makes of it.
    fn planned<A: Value, B: Value>(theirs: &Migrations, ours: &Migrations) -> Result<OperatorPlan, Differences> {
        let old = KeyedState::<u64, A>::default().forms(theirs);
        let old: Vec<StateEntry> = old.iter().map(StateForm::to_entry).collect();
        plan(&old, &KeyedState::<u64, B>::default().forms(ours), false, ours)
    }

    fn refused<A: Value, B: Value>(theirs: &Migrations, ours: &Migrations) -> String {
        planned::<A, B>(theirs, ours).unwrap_err().found.join("; ")
    }

    fn steps(plan: &OperatorPlan) -> usize {
        match &plan.0[0].value {
            Plan::Same => 0,
            Plan::Evolve(_, forms) => forms.len(),
            Plan::Parts(_) => panic!("not as a whole"),
        }
    }

    #[test]
    fn every_version_finds_its_way() {
        let (none, all) = (Migrations::default(), knowing::<Order>());
        // Without versions a form is known by its shape; of two that look alike it is the older.
        assert_eq!(steps(&planned::<OrderV1, Order>(&none, &all).unwrap()), 3);
        assert_eq!(steps(&planned::<OrderV2, Order>(&none, &all).unwrap()), 2);
        assert_eq!(steps(&planned::<OrderV3, Order>(&none, &all).unwrap()), 2);
        assert_eq!(steps(&planned::<Order, Order>(&none, &all).unwrap()), 0);
        // With versions there is no doubt.
        assert_eq!(steps(&planned::<OrderV2, Order>(&all, &all).unwrap()), 2);
        assert_eq!(steps(&planned::<OrderV3, Order>(&all, &all).unwrap()), 1);
        assert_eq!(steps(&planned::<OrderV2, OrderV3>(&all, &all).unwrap()), 1);
    }

    #[test]
    fn there_is_no_way_back_nor_around() {
        let (none, all) = (Migrations::default(), knowing::<Order>());
        let by = "the value was written by version";
        assert_eq!(
            refused::<Order, OrderV2>(&all, &all),
            format!("{by} 4 of `OrderV2`, and this program knows version 2")
        );
        assert_eq!(
            refused::<OrderV3, OrderV2>(&all, &none),
            format!("{by} 3 of `OrderV3`, and this program knows no version of it")
        );
        #[derive(Clone, Serialize, Deserialize)]
        struct Late {
            cents: u32,
        }
        evolves!(Late, 6);
        assert_eq!(
            refused::<Order, Late>(&all, &knowing::<Late>()),
            format!("{by} 4 of `Late`, and this program goes back to version 6")
        );
        #[derive(Clone, Serialize, Deserialize)]
        struct Other {
            cents: u32,
            note: String,
        }
        evolves!(Other, 2);
        assert_eq!(
            refused::<OrderV2, Other>(&all, &knowing::<Other>()),
            "field `cents` of `Other` was i64 and is now u32, and both are version 2 of `Other`"
        );
        assert_eq!(refused::<OrderV2, Other>(&none, &none), "field `cents` of `Other` was i64 and is now u32");
        assert!(refused::<Other, Order>(&none, &all).ends_with("and it is none of the older forms of `Order` either"));
    }

    #[test]
    fn types_are_migrated_where_they_are_nested() {
        type In<T> = (u64, Option<Vec<(T, bool)>>);
        let (none, all) = (Migrations::default(), knowing::<Order>());
        assert!(!planned::<In<OrderV1>, In<Order>>(&none, &all).unwrap().is_empty());
        assert!(planned::<In<Order>, In<Order>>(&all, &all).unwrap().is_empty());
        assert!(planned::<In<Order>, In<Order>>(&none, &all).unwrap().is_empty(), "versions alone change no bytes");
        let back = refused::<In<Order>, In<OrderV1>>(&all, &all);
        assert_eq!(back, "the value was written by version 4 of `OrderV1`, and this program knows version 1");
        // A difference beside it is still one.
        let beside = planned::<(OrderV1, i64), (Order, u64)>(&none, &all).unwrap_err();
        assert!(!beside.found.is_empty());
    }

    #[derive(Clone, Serialize, Deserialize)]
    struct Tree<T> {
        of: T,
        children: Vec<Tree<T>>,
    }

    /// The part that goes back looks the same, and is not.
    #[test]
    fn a_type_that_contains_itself_is_not_half_migrated() {
        let (none, all) = (Migrations::default(), knowing::<Order>());
        assert!(planned::<Tree<u8>, Tree<u8>>(&none, &none).unwrap().is_empty());
        assert_eq!(refused::<Tree<u8>, Tree<u16>>(&none, &none), "field `of` of `Tree` was u8 and is now u16");
        let part = refused::<Tree<OrderV1>, Tree<Order>>(&none, &all);
        assert_eq!(part, "field `children` of `Tree` contains itself, so it can only be migrated as a whole");
    }

    #[test]
    fn other_states_and_untraceable_types_are_refused_by_name() {
        let none = Migrations::default();
        let slices = SliceState::<u64, u64>::default().forms(&none);
        let old: Vec<_> = slices.iter().map(StateForm::to_entry).collect();
        let found = plan(&old, &KeyedState::<u64, u64>::default().forms(&none), false, &none).unwrap_err().found;
        assert_eq!(found, ["it kept slices, and now keeps values"]);
        let any = StateForm::of_entries::<u64, serde_json::Value>("values", &none);
        assert_eq!(any.opaque().count(), 1);
        assert!(plan(&[any.to_entry()], std::slice::from_ref(&any), false, &none).is_ok());
        let text = StateForm::of_entries::<u64, String>("values", &none);
        assert!(plan(&[text.to_entry()], std::slice::from_ref(&any), true, &none).is_ok(), "traced by another version");
        let found = plan(&[text.to_entry()], &[any], false, &none).unwrap_err().found;
        assert!(
            found[0].contains("was string and is now serde_json") && found[0].contains("by its name alone"),
            "{found:?}"
        );
    }
}

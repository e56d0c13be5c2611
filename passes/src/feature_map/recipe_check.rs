//! What a recipe may ask of the feature maps there are.

use super::{FeatureMap, MAPS, find};
use dijiang_format::recipe::{
    Attention, Decay, Feed, MOST_CHUNK, MOST_LOCAL, MOST_POSITIONS, MOST_SLOTS, MapSpec, Readout, Recipe,
    Rule,
};
use std::ops::RangeInclusive;

/// A recipe that asks for what there is not.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RecipeError {
    #[error("recipe `{recipe}`: no feature map is called `{kind}` (there are: {known})")]
    UnknownMap { recipe: String, kind: String, known: String },
    #[error("recipe `{recipe}`: `{field}` is {found}, expected {least} to {most}")]
    Range { recipe: String, field: &'static str, found: u64, least: u64, most: u64 },
    #[error(
        "recipe `{recipe}`: `rule: delta` wants features of length one, and those of `{kind}` are not (hint: {}take the map dct-unit)",
        if *takes_unit { "write `unit: true` in `map`, or " } else { "" }
    )]
    NotUnit { recipe: String, kind: &'static str, takes_unit: bool },
    #[error(
        "recipe `{recipe}`: `readout: sum` divides by a sum of features, and those of `{kind}` have both signs (hint: write `rule: delta`, or `readout: group-norm`)"
    )]
    NotPositive { recipe: String, kind: &'static str },
    #[error(
        "recipe `{recipe}`: `rule: none` leaves nothing without `local` (hint: write `local: {{window: 64, sinks: 4}}`)"
    )]
    Nothing { recipe: String },
    #[error(
        "recipe `{recipe}`: `rule: linear` counts what is in the window twice (hint: write `feed: leaving`, or `rule: delta`)"
    )]
    Twice { recipe: String },
    #[error(
        "recipe `{recipe}`: `rule: linear` and `local` are parts of one sum, and no other `readout` than `sum` divides by it (hint: write `readout: sum`, or `rule: delta`)"
    )]
    NotOneSum { recipe: String },
    #[error(
        "recipe `{recipe}`: `feed: leaving` says what leaves a window, and there is none (hint: write `local: {{window: 64, sinks: 4}}`)"
    )]
    NothingLeaves { recipe: String },
    #[error(
        "recipe `{recipe}`: `both_ways` wants features that are not negative, and those of `{kind}` have both signs"
    )]
    BothWays { recipe: String, kind: String },
    #[error(
        "recipe `{recipe}`: `wide` has the sinks of `local`, and there is none (hint: write `local: {{window: 64, sinks: 4}}`)"
    )]
    NoLocal { recipe: String },
    #[error(
        "recipe `{recipe}`: `by_position` weighs what the readout normalises, under `rule: linear` alone (hint: write `readout: group-norm`, and neither `rule` nor `local`)"
    )]
    ByPosition { recipe: String },
    #[error(
        "recipe `{recipe}`: `rule: slots` {reason} (hint: write `map: {{kind: identity}}`, `rule: slots` and `slots: {{count: 32}}`, and nothing else)"
    )]
    Slots { recipe: String, reason: &'static str },
    #[error(
        "recipe `{recipe}`: `slots` is what `rule: slots` sums in, and the rule is another (hint: write `rule: slots`)"
    )]
    SlotsAlone { recipe: String },
    #[error(
        "recipe `{recipe}`: how many positions `{kind}` tells apart is not known, as the model does not say how many it has (hint: write `positions: 2048` there)"
    )]
    NoPositions { recipe: String, kind: String },
    #[error("recipe `{recipe}`: `{field}` means nothing beside `{beside}` (hint: take one of them out)")]
    Useless { recipe: String, field: &'static str, beside: &'static str },
    #[error("recipe `{recipe}`: `map.{field}` means nothing to `{kind}` (it reads: {})", if known.is_empty() { "nothing" } else { known })]
    Ignored { recipe: String, field: &'static str, kind: &'static str, known: String },
}

/// The most features, as a multiple of head_dim: a state far larger than any cache it stands for.
const MOST_FEATURES: u64 = 64;

/// Whether the compiler can do what a recipe asks for.
pub fn check(recipe: &Recipe) -> Result<(), RecipeError> {
    let map = check_map(recipe, &recipe.map)?;
    check_range(recipe, "chunk", u64::from(recipe.chunk), 1..=u64::from(MOST_CHUNK))?;
    check_rule(recipe, map)?;
    check_by_position(recipe)?;
    check_slots(recipe)?;
    check_local(recipe)?;
    check_wide(recipe)?;
    check_both_ways(recipe)
}

/// Whether it can do it without knowing the model.
pub fn check_whole(recipe: &Recipe) -> Result<(), RecipeError> {
    check(recipe)?;
    if recipe.slots.is_some_and(|slots| slots.positions.is_none()) {
        return Err(RecipeError::NoPositions { recipe: recipe.name.clone(), kind: "slots".to_owned() });
    }
    let specs = std::iter::once(&recipe.map).chain(&recipe.both_ways);
    let unknown = |spec: &&MapSpec| is_turned(spec) && spec.positions.is_none();
    match specs.into_iter().find(unknown) {
        Some(spec) => Err(RecipeError::NoPositions { recipe: recipe.name.clone(), kind: spec.kind.clone() }),
        None => Ok(()),
    }
}

/// The map of a spec, where it reads all that the spec says.
fn check_map(recipe: &Recipe, spec: &MapSpec) -> Result<&'static dyn FeatureMap, RecipeError> {
    let Some(map) = find(&spec.kind) else {
        let known: Vec<&str> = MAPS.iter().map(|m| m.name()).collect();
        return Err(RecipeError::UnknownMap {
            recipe: recipe.name.clone(),
            kind: spec.kind.clone(),
            known: known.join(", "),
        });
    };
    check_range(recipe, "map.features", spec.features as u64, 1..=MOST_FEATURES)?;
    check_range(recipe, "map.positions", spec.positions.unwrap_or(1), 1..=MOST_POSITIONS)?;
    match spec.fields_set().into_iter().find(|field| !map.fields().contains(field)) {
        Some(field) => Err(RecipeError::Ignored {
            recipe: recipe.name.clone(),
            field,
            kind: map.name(),
            known: map.fields().join(", "),
        }),
        None => Ok(map),
    }
}

/// Whether the sums of attentions that see all tokens can be divided.
fn check_both_ways(recipe: &Recipe) -> Result<(), RecipeError> {
    let Some(spec) = &recipe.both_ways else { return Ok(()) };
    match check_map(recipe, spec)?.is_positive() {
        true => Ok(()),
        false => Err(RecipeError::BothWays { recipe: recipe.name.clone(), kind: spec.kind.clone() }),
    }
}

/// Whether every field that a recipe was given, by its name, means something.
pub fn check_given<'a>(recipe: &Recipe, given: impl Iterator<Item = &'a str>) -> Result<(), RecipeError> {
    let (beside, useless): (&str, &[&str]) = match (recipe.attention, recipe.rule) {
        (Attention::Softmax, _) => {
            const USELESS: [&str; 12] = [
                "map",
                "decay",
                "readout",
                "by_position",
                "rule",
                "slots",
                "local",
                "feed",
                "wide",
                "both_ways",
                "softmax_layers",
                "chunk",
            ];
            ("attention: softmax", &USELESS)
        }
        (_, Rule::None) => ("rule: none", &["map", "decay", "readout", "feed"]),
        _ => return Ok(()),
    };
    let given: Vec<&str> = given.collect();
    match useless.iter().find(|field| given.contains(field)) {
        Some(field) => Err(RecipeError::Useless { recipe: recipe.name.clone(), field, beside }),
        None => Ok(()),
    }
}

/// Whether slots are those of the rule that has them, which has nothing else.
fn check_slots(recipe: &Recipe) -> Result<(), RecipeError> {
    let name = || recipe.name.clone();
    let slots = match (recipe.rule, recipe.slots) {
        (Rule::Slots, Some(slots)) => slots,
        (Rule::Slots, None) => return Err(RecipeError::Slots { recipe: name(), reason: "has none" }),
        (_, Some(_)) => return Err(RecipeError::SlotsAlone { recipe: name() }),
        (_, None) => return Ok(()),
    };
    let others = [
        (recipe.map.kind != "identity", "takes queries and keys as they are"),
        (recipe.decay != Decay::None, "knows no decay"),
        (recipe.readout != Readout::Sum, "knows no other readout than softmax"),
        (recipe.local.is_some(), "stands beside no window"),
    ];
    if let Some((_, reason)) = others.into_iter().find(|(is_there, _)| *is_there) {
        return Err(RecipeError::Slots { recipe: name(), reason });
    }
    check_range(recipe, "slots.count", u64::from(slots.count), 2..=u64::from(MOST_SLOTS))?;
    check_range(recipe, "slots.positions", slots.positions.unwrap_or(1), 1..=MOST_POSITIONS)
}

/// Whether weights by position have sums to weigh that nothing divides.
fn check_by_position(recipe: &Recipe) -> Result<(), RecipeError> {
    let Some(positions) = recipe.by_position else { return Ok(()) };
    if recipe.readout == Readout::Sum || recipe.rule != Rule::Linear || recipe.local.is_some() {
        return Err(RecipeError::ByPosition { recipe: recipe.name.clone() });
    }
    check_range(recipe, "by_position", positions, 1..=MOST_POSITIONS)
}

/// Whether the window is one, and has what it stands beside.
fn check_local(recipe: &Recipe) -> Result<(), RecipeError> {
    let name = || recipe.name.clone();
    let Some(local) = recipe.local else {
        return match (recipe.rule, recipe.feed) {
            (Rule::None, _) => Err(RecipeError::Nothing { recipe: name() }),
            (_, Feed::Leaving) => Err(RecipeError::NothingLeaves { recipe: name() }),
            _ => Ok(()),
        };
    };
    check_range(recipe, "local.window", u64::from(local.window), 1..=u64::from(MOST_LOCAL))?;
    check_range(recipe, "local.sinks", u64::from(local.sinks), 0..=u64::from(MOST_LOCAL))?;
    match (recipe.rule, recipe.feed) {
        (Rule::Linear, Feed::AtOnce) => Err(RecipeError::Twice { recipe: name() }),
        (Rule::Linear, Feed::Leaving) if is_turned(&recipe.map) => Err(RecipeError::Useless {
            recipe: name(),
            field: "local",
            beside: "features that are turned by position",
        }),
        (Rule::Linear, Feed::Leaving) => check_one_sum(recipe),
        _ => Ok(()),
    }
}

fn is_turned(spec: &MapSpec) -> bool {
    find(&spec.kind).is_some_and(FeatureMap::is_turned)
}

/// Whether what is near and what is far are divided by one sum.
fn check_one_sum(recipe: &Recipe) -> Result<(), RecipeError> {
    match recipe.readout {
        Readout::Sum => Ok(()),
        Readout::GroupNorm | Readout::RmsNorm => Err(RecipeError::NotOneSum { recipe: recipe.name.clone() }),
    }
}

/// Whether the wide layers are wider than the others.
fn check_wide(recipe: &Recipe) -> Result<(), RecipeError> {
    let Some(wide) = &recipe.wide else { return Ok(()) };
    let Some(local) = recipe.local else {
        return Err(RecipeError::NoLocal { recipe: recipe.name.clone() });
    };
    let least = u64::from(local.window) + 1;
    check_range(recipe, "wide.window", u64::from(wide.window), least..=u64::from(MOST_LOCAL))?;
    check_range(recipe, "wide.one_in", u64::from(wide.one_in), 1..=u64::from(u32::MAX))
}

/// Whether the rule can do with the features.
fn check_rule(recipe: &Recipe, map: &dyn FeatureMap) -> Result<(), RecipeError> {
    let (recipe_name, kind) = (recipe.name.clone(), map.name());
    let divides = recipe.readout == Readout::Sum;
    match recipe.rule {
        Rule::Delta if !map.is_unit() && !recipe.map.unit => {
            let takes_unit = map.fields().contains(&"unit");
            Err(RecipeError::NotUnit { recipe: recipe_name, kind, takes_unit })
        }
        Rule::Linear if divides && !map.is_positive() => {
            Err(RecipeError::NotPositive { recipe: recipe_name, kind })
        }
        _ => Ok(()),
    }
}

fn check_range(
    recipe: &Recipe,
    field: &'static str,
    found: u64,
    expected: RangeInclusive<u64>,
) -> Result<(), RecipeError> {
    if expected.contains(&found) {
        return Ok(());
    }
    let (least, most) = expected.into_inner();
    Err(RecipeError::Range { recipe: recipe.name.clone(), field, found, least, most })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use dijiang_format::recipe::{Basis, Lengths, Local, Radial, Rows, Slots, Wide};

    fn recipe(map: MapSpec) -> Recipe {
        Recipe { name: "x".to_owned(), map, ..testing::recipe() }
    }

    fn refused(recipe: &Recipe) -> String {
        check(recipe).expect_err("it is refused").to_string()
    }

    #[test]
    fn sizes_are_bounded() {
        let features = |features| recipe(MapSpec { features, ..MapSpec::default() });
        let chunk = |chunk| Recipe { chunk, ..recipe(MapSpec::default()) };
        assert_eq!(check(&features(64)), Ok(()));
        assert_eq!(check(&chunk(65536)), Ok(()));
        assert_eq!(refused(&features(0)), "recipe `x`: `map.features` is 0, expected 1 to 64");
        assert_eq!(refused(&features(65)), "recipe `x`: `map.features` is 65, expected 1 to 64");
        assert_eq!(refused(&chunk(0)), "recipe `x`: `chunk` is 0, expected 1 to 65536");
        assert_eq!(refused(&chunk(65537)), "recipe `x`: `chunk` is 65537, expected 1 to 65536");
    }

    #[test]
    fn a_field_that_means_nothing_beside_another_is_refused_by_its_name() {
        let given = |recipe: &Recipe, fields: &[&str]| check_given(recipe, fields.iter().copied());
        let plain = recipe(MapSpec::default());
        assert_eq!(given(&plain, &["name", "map", "decay", "readout", "chunk"]), Ok(()));
        let none = Recipe { rule: Rule::None, local: Some(Local { window: 4, sinks: 1 }), ..plain.clone() };
        assert_eq!(given(&none, &["name", "rule", "local", "softmax_layers", "chunk"]), Ok(()));
        for field in ["map", "decay", "readout"] {
            let told = given(&none, &["name", field, "rule"]).expect_err("it is refused").to_string();
            let expected = format!(
                "recipe `x`: `{field}` means nothing beside `rule: none` (hint: take one of them out)"
            );
            assert_eq!(told, expected);
        }
        let softmax = Recipe { attention: Attention::Softmax, ..plain };
        assert_eq!(given(&softmax, &["name", "attention"]), Ok(()));
        let told = given(&softmax, &["name", "rule", "attention"]).expect_err("it is refused").to_string();
        assert!(told.starts_with("recipe `x`: `rule` means nothing beside `attention: softmax`"), "{told}");
    }

    #[test]
    fn what_sees_all_tokens_is_divided_by_a_sum_of_features() {
        let both = |kind: &str| Recipe {
            both_ways: Some(MapSpec { kind: kind.to_owned(), ..MapSpec::default() }),
            ..recipe(MapSpec::default())
        };
        assert_eq!(check(&both("dct-softmax")), Ok(()));
        assert_eq!(
            refused(&both("dct-unit")),
            "recipe `x`: `both_ways` wants features that are not negative, and those of `dct-unit` have both signs"
        );
        assert!(refused(&both("dct")).starts_with("recipe `x`: no feature map is called `dct`"));
    }

    #[test]
    fn features_that_are_turned_want_to_know_how_far() {
        let spec = |positions| MapSpec { kind: "cosformer".to_owned(), positions, ..MapSpec::default() };
        let turned = |positions| recipe(spec(positions));
        assert_eq!((check(&turned(None)), check_whole(&turned(Some(16)))), (Ok(()), Ok(())));
        let told = |recipe: &Recipe| check_whole(recipe).expect_err("it is refused").to_string();
        assert_eq!(
            told(&turned(None)),
            "recipe `x`: how many positions `cosformer` tells apart is not known, as the model does not say how many it has (hint: write `positions: 2048` there)"
        );
        assert_eq!(refused(&turned(Some(0))), "recipe `x`: `map.positions` is 0, expected 1 to 1048576");
        let both = Recipe { both_ways: Some(spec(None)), ..recipe(MapSpec::default()) };
        assert!(told(&both).contains("how many positions"));
        let local = Some(Local { window: 4, sinks: 0 });
        assert_eq!(
            refused(&Recipe { local, feed: Feed::Leaving, ..turned(Some(16)) }),
            "recipe `x`: `local` means nothing beside `features that are turned by position` (hint: take one of them out)"
        );
    }

    #[test]
    fn slots_have_nothing_beside_them() {
        let identity = MapSpec { kind: "identity".to_owned(), ..MapSpec::default() };
        let slots = Some(Slots { count: 8, positions: None });
        let plain = Recipe { rule: Rule::Slots, slots, ..recipe(identity) };
        assert_eq!(check(&plain), Ok(()));
        assert_eq!(
            check_whole(&plain).expect_err("it is refused").to_string(),
            "recipe `x`: how many positions `slots` tells apart is not known, as the model does not say how many it has (hint: write `positions: 2048` there)"
        );
        let hint =
            "(hint: write `map: {kind: identity}`, `rule: slots` and `slots: {count: 32}`, and nothing else)";
        let local = Some(Local { window: 4, sinks: 0 });
        for (other, reason) in [
            (Recipe { slots: None, ..plain.clone() }, "has none"),
            (Recipe { map: MapSpec::default(), ..plain.clone() }, "takes queries and keys as they are"),
            (Recipe { decay: Decay::Fixed, ..plain.clone() }, "knows no decay"),
            (Recipe { readout: Readout::RmsNorm, ..plain.clone() }, "knows no other readout than softmax"),
            (Recipe { local, ..plain.clone() }, "stands beside no window"),
        ] {
            assert_eq!(refused(&other), format!("recipe `x`: `rule: slots` {reason} {hint}"));
        }
        let alone = Recipe { slots, ..recipe(MapSpec::default()) };
        assert!(refused(&alone).ends_with("and the rule is another (hint: write `rule: slots`)"));
        let few = Recipe { slots: Some(Slots { count: 1, positions: None }), ..plain };
        assert_eq!(refused(&few), "recipe `x`: `slots.count` is 1, expected 2 to 4096");
    }

    #[test]
    fn weights_by_position_want_sums_that_nothing_divides() {
        let weighed = |readout, by_position| Recipe {
            readout,
            by_position: Some(by_position),
            ..recipe(MapSpec::default())
        };
        assert_eq!(check(&weighed(Readout::GroupNorm, 2048)), Ok(()));
        assert_eq!(
            refused(&weighed(Readout::GroupNorm, 0)),
            "recipe `x`: `by_position` is 0, expected 1 to 1048576"
        );
        let unit = MapSpec { kind: "dct-unit".to_owned(), ..MapSpec::default() };
        let delta = Recipe { rule: Rule::Delta, map: unit, ..weighed(Readout::GroupNorm, 8) };
        for recipe in [weighed(Readout::Sum, 8), delta] {
            assert_eq!(
                refused(&recipe),
                "recipe `x`: `by_position` weighs what the readout normalises, under `rule: linear` alone (hint: write `readout: group-norm`, and neither `rule` nor `local`)"
            );
        }
    }

    #[test]
    fn wide_layers_are_wider_than_the_others() {
        let local = Some(Local { window: 32, sinks: 4 });
        let near = Recipe { rule: Rule::None, local, ..recipe(MapSpec::default()) };
        let wide =
            |window, one_in| Recipe { wide: Some(Wide { window, one_in, layers: None }), ..near.clone() };
        assert_eq!(check(&wide(33, 1)), Ok(()));
        assert_eq!(refused(&wide(32, 5)), "recipe `x`: `wide.window` is 32, expected 33 to 16384");
        assert_eq!(refused(&wide(16385, 5)), "recipe `x`: `wide.window` is 16385, expected 33 to 16384");
        assert_eq!(refused(&wide(64, 0)), "recipe `x`: `wide.one_in` is 0, expected 1 to 4294967295");
        assert_eq!(
            refused(&Recipe { local: None, rule: Rule::Linear, ..wide(64, 5) }),
            "recipe `x`: `wide` has the sinks of `local`, and there is none (hint: write `local: {window: 64, sinks: 4}`)"
        );
    }

    /// Every map with every field set in turn: it reads the field, or refuses it.
    #[test]
    fn a_map_refuses_the_fields_it_does_not_read() {
        let plain = MapSpec::default();
        let specs = [
            ("features", MapSpec { features: 2, ..plain.clone() }),
            ("signs", MapSpec { signs: true, ..plain.clone() }),
            ("lengths", MapSpec { lengths: Lengths::Sampled, ..plain.clone() }),
            ("radial", MapSpec { radial: Radial::Chi, ..plain.clone() }),
            ("unit", MapSpec { unit: true, ..plain.clone() }),
            ("basis", MapSpec { basis: Basis::Identity, ..plain.clone() }),
            ("rows", MapSpec { rows: Rows::Independent, ..plain.clone() }),
            ("positions", MapSpec { positions: Some(16), ..plain.clone() }),
        ];
        let ignored = |kind: &str| -> Vec<&str> {
            let is_refused = |spec: &MapSpec| {
                let recipe = recipe(MapSpec { kind: kind.to_owned(), ..spec.clone() });
                matches!(check(&recipe), Err(RecipeError::Ignored { .. }))
            };
            specs.iter().filter(|(_, spec)| is_refused(spec)).map(|(field, _)| *field).collect()
        };
        assert_eq!(ignored("prf"), ["signs", "lengths", "radial", "unit", "basis", "positions"]);
        assert_eq!(ignored("cosformer"), ["features", "signs", "lengths", "radial", "unit", "basis", "rows"]);
        for kind in ["elu", "identity"] {
            assert_eq!(ignored(kind).len(), specs.len(), "{kind}");
        }
        assert_eq!(ignored("dct-softmax"), ["basis", "rows", "positions"]);
        assert_eq!(ignored("dct-transposed"), ["features", "signs", "unit", "basis", "rows", "positions"]);
        for kind in ["pff", "wpff"] {
            assert_eq!(ignored(kind), ["signs", "unit", "basis", "rows", "positions"], "{kind}");
        }
        assert_eq!(ignored("wdcf"), ["signs", "basis", "rows", "positions"]);
        assert_eq!(ignored("dct-unit"), ["signs", "lengths", "radial", "unit", "rows", "positions"]);
        assert_eq!(
            ignored("wdct-unit"),
            ["signs", "lengths", "radial", "unit", "basis", "rows", "positions"]
        );
        let delta = |map| Recipe { rule: Rule::Delta, ..recipe(map) };
        assert_eq!(check(&delta(MapSpec { unit: true, ..MapSpec::default() })), Ok(()));
        assert_eq!(check(&delta(MapSpec { kind: "dct-unit".to_owned(), ..MapSpec::default() })), Ok(()));
        assert_eq!(
            refused(&recipe(MapSpec { kind: "dct-unit".to_owned(), ..MapSpec::default() })),
            "recipe `x`: `readout: sum` divides by a sum of features, and those of `dct-unit` have both signs (hint: write `rule: delta`, or `readout: group-norm`)"
        );
        assert_eq!(
            refused(&delta(MapSpec::default())),
            "recipe `x`: `rule: delta` wants features of length one, and those of `wdcf` are not (hint: write `unit: true` in `map`, or take the map dct-unit)"
        );
        // No other way is named than one that is there.
        for kind in ["prf", "pff", "wpff"] {
            let told = refused(&delta(MapSpec { kind: kind.to_owned(), ..MapSpec::default() }));
            assert!(told.ends_with(" are not (hint: take the map dct-unit)"), "{told}");
        }
        let none = Recipe { rule: Rule::None, ..recipe(plain.clone()) };
        let local = |window, sinks| Some(Local { window, sinks });
        assert_eq!(
            refused(&none),
            "recipe `x`: `rule: none` leaves nothing without `local` (hint: write `local: {window: 64, sinks: 4}`)"
        );
        assert_eq!(check(&Recipe { local: local(1, 0), ..none.clone() }), Ok(()));
        assert_eq!(
            refused(&Recipe { local: local(0, 4), ..none.clone() }),
            "recipe `x`: `local.window` is 0, expected 1 to 16384"
        );
        assert_eq!(
            refused(&Recipe { local: local(1, 16385), ..none }),
            "recipe `x`: `local.sinks` is 16385, expected 0 to 16384"
        );
        assert_eq!(
            refused(&Recipe { local: local(64, 4), ..recipe(plain.clone()) }),
            "recipe `x`: `rule: linear` counts what is in the window twice (hint: write `feed: leaving`, or `rule: delta`)"
        );
        let leaving = Recipe { local: local(64, 4), feed: Feed::Leaving, ..recipe(plain.clone()) };
        assert_eq!(check(&leaving), Ok(()));
        assert_eq!(
            refused(&Recipe { readout: Readout::GroupNorm, ..leaving.clone() }),
            "recipe `x`: `rule: linear` and `local` are parts of one sum, and no other `readout` than `sum` divides by it (hint: write `readout: sum`, or `rule: delta`)"
        );
        assert_eq!(
            refused(&Recipe { local: None, ..leaving }),
            "recipe `x`: `feed: leaving` says what leaves a window, and there is none (hint: write `local: {window: 64, sinks: 4}`)"
        );
        let prf = MapSpec { kind: "prf".to_owned(), radial: Radial::Chi, ..plain };
        assert_eq!(
            refused(&recipe(prf)),
            "recipe `x`: `map.radial` means nothing to `prf` (it reads: features, rows)"
        );
    }
}

//! What a conversion adds to a model, by name: `{module}.dijiang.{parameter}`, or `{module}.dijiang.{role}.{parameter}`
//! where queries and keys have parameters of their own. Printed and read here alone.

use super::{FeatureMap, MAPS, Role};

/// What the name of every added weight holds, between its module and the rest.
const ADDED: &str = ".dijiang.";

/// What is added besides the parameters of feature maps, with whether training changes it.
const OTHERS: [(&str, bool); 14] = [
    ("beta.bias", true),
    ("beta.weight", true),
    ("far", true),
    ("gate.bias", true),
    ("gate.weight", true),
    ("log_decay", false),
    ("mix", true),
    ("norm.bias", true),
    ("norm.weight", true),
    ("positions.sums", true),
    ("positions.values", true),
    ("readout.weight", true),
    ("slots.keys", true),
    ("slots.values", true),
];

/// The name of an added weight.
pub fn name(module: &str, role: Option<Role>, parameter: &str) -> String {
    match role {
        Some(role) => format!("{module}{ADDED}{}.{parameter}", role.prefix()),
        None => format!("{module}{ADDED}{parameter}"),
    }
}

/// Whether a weight of this name is one that a conversion added.
pub fn is_added(name: &str) -> bool {
    name.contains(ADDED)
}

/// Whether a weight of this name is one that a conversion added to this module.
pub fn is_added_to(name: &str, module: &str) -> bool {
    name.strip_prefix(module).is_some_and(|rest| rest.starts_with(ADDED))
}

/// Whether a weight of this name is one that a conversion added and that stays as it was drawn or computed.
pub fn is_fixed(name: &str) -> bool {
    let Some((_, added)) = name.split_once(ADDED) else { return false };
    let trained = trained_of_maps(added).or_else(|| trained_of_others(added));
    trained == Some(false)
}

/// Whether a weight of this name is one of all heads that this map draws at random.
pub fn is_drawn(name: &str, map: &dyn FeatureMap) -> bool {
    let Some((_, added)) = name.split_once(ADDED) else { return false };
    map.parameters().iter().any(|spec| spec.is_drawn && spec.name == added)
}

fn trained_of_others(added: &str) -> Option<bool> {
    OTHERS.iter().find(|(name, _)| *name == added).map(|(_, trained)| *trained)
}

/// All maps agree on it.
fn trained_of_maps(added: &str) -> Option<bool> {
    let is_of_a_role =
        |own: &str| [Role::Query, Role::Key].iter().any(|role| added == format!("{}.{own}", role.prefix()));
    let all = MAPS.iter().flat_map(|map| map.parameters());
    let found = all.into_iter().find(|spec| match spec.role(Role::Query) {
        Some(_) => is_of_a_role(spec.name),
        None => added == spec.name,
    });
    found.map(|spec| spec.trained)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn what_is_trained_is_told_from_the_name() {
        let query = name("h.0.attn", Some(Role::Query), "log_d");
        assert_eq!(query, "h.0.attn.dijiang.q.log_d");
        for (added, fixed) in [
            ("q.log_d", false),
            ("k.w", false),
            ("c", true),
            ("omega", true),
            ("log_decay", true),
            ("gate.bias", false),
        ] {
            assert_eq!(is_fixed(&name("h.0.attn", None, added)), fixed, "{added}");
        }
        // A weight of the model itself, and one that no map has for all heads.
        assert!(!is_fixed("h.0.attn.c") && !is_fixed("h.0.attn.dijiang.log_d"));
        assert!(is_added(&query) && !is_added("h.0.attn.c"));
        assert!(is_added_to(&query, "h.0.attn") && !is_added_to(&query, "h.0.attn.q"));
    }

    #[test]
    fn maps_agree_on_what_is_trained() {
        let mut trained = BTreeMap::new();
        for spec in MAPS.iter().flat_map(|map| map.parameters()) {
            assert_eq!(*trained.entry(spec.name).or_insert(spec.trained), spec.trained, "{}", spec.name);
            assert!(OTHERS.iter().all(|(other, _)| *other != spec.name), "{}", spec.name);
        }
    }
}

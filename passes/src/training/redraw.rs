//! Random features drawn anew while a model is trained (Performer, Choromanski et al. 2021, which calls it redrawing).
//!
//! They become inputs of the training graphs that no gradient is taken to.

use super::parameters::{Group, Parameter};
use crate::feature_map::FeatureMap;
use crate::feature_map::added::is_drawn;
use crate::ir::graph::Graph;
use crate::numeric::random::Random;
use dijiang_format::recipe::MapSpec;

/// The weights that a map drew at random; `None` where it draws none.
pub fn drawn(graph: &Graph, map: &dyn FeatureMap) -> Option<Group> {
    let weights = graph.consts().filter(|(id, name, _)| graph.value(*id).is_weight && is_drawn(name, map));
    let parameters: Vec<Parameter> = weights
        .map(|(_, name, tensor)| Parameter { name: name.to_owned(), dims: tensor.dims().to_vec() })
        .collect();
    let group = Group { name: "drawn", parameters, decays: false, is_new: false };
    (!group.is_empty()).then_some(group)
}

/// The flat vector of draw `number`, which depends on nothing but that, the seed, and the names of the weights
/// `[m, head_dim]`.
pub fn draw(
    group: &Group,
    (map, spec): (&dyn FeatureMap, &MapSpec),
    (seed, number): (u64, usize),
) -> Vec<f32> {
    let mut flat = vec![0.0; group.len()];
    for (at, parameter) in group.offsets() {
        let mut random = Random::named(seed, &format!("{}, draw {number}", parameter.name));
        let head_dim = parameter.dims.last().copied().unwrap_or_default() as usize;
        let all = map.initial(spec, 1, head_dim, &mut random);
        let found = map.parameters().iter().zip(all).find(|(own, _)| own.is_drawn);
        let numbers = found.map(|(_, tensor)| tensor.to_f64()).unwrap_or_default();
        flat[at..].iter_mut().zip(numbers).for_each(|(to, from)| *to = from as f32);
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature_map::find;
    use crate::ir::text::parse;
    use dijiang_format::recipe::Rows;

    fn graph() -> Graph {
        parse(
            r#"graph "g" {
  input %x: f32[batch, 2]
  weight %h.0.attn.dijiang.omega: f32[4, 2] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
  weight %h.1.attn.dijiang.omega: f32[4, 2] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
  weight %h.1.attn.omega: f32[4, 2] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
  %a = Gemm(%x, %h.0.attn.dijiang.omega) {transB: 1} "a"
  %b = Gemm(%x, %h.1.attn.dijiang.omega) {transB: 1} "b"
  %c = Gemm(%x, %h.1.attn.omega) {transB: 1} "c"
  %d = Add(%a, %b) "d"
  %e = Add(%c, %d) "e"
  output "y" %e
}"#,
        )
        .expect("it parses")
    }

    #[test]
    fn only_what_a_map_draws_is_drawn() {
        let names = |map: &str| {
            let group = drawn(&graph(), find(map).expect("a map"))?;
            Some(group.parameters.into_iter().map(|p| p.name).collect::<Vec<_>>())
        };
        let both = ["h.0.attn.dijiang.omega", "h.1.attn.dijiang.omega"].map(str::to_owned);
        assert_eq!(names("prf"), Some(both.to_vec()));
        // Frequencies of a parameter of the same name are drawn once, apart from their directions.
        assert_eq!(names("pff"), None);
        assert_eq!(names("dct-unit"), None);
    }

    #[test]
    fn draws_are_orthogonal_and_each_another() {
        let map = find("prf").expect("a map");
        let spec =
            MapSpec { kind: "prf".to_owned(), features: 2, rows: Rows::Orthogonal, ..MapSpec::default() };
        let group = drawn(&graph(), map).expect("two weights");
        let of = |seed, number| draw(&group, (map, &spec), (seed, number));
        let first = of(7, 1);
        assert_eq!(first, of(7, 1));
        assert_ne!(first, of(7, 2));
        assert_ne!(first, of(8, 1));
        let layers: Vec<&[f32]> = group.offsets().map(|(at, p)| &first[at..at + p.len()]).collect();
        assert_ne!(layers[0], layers[1]);
        for layer in layers {
            for rows in layer.chunks(4) {
                let product = f64::from(rows[0] * rows[2] + rows[1] * rows[3]);
                let lengths = f64::from(rows[0].hypot(rows[1]) * rows[2].hypot(rows[3]));
                // f32 rounds each product.
                assert!(product.abs() < 1e-6 * lengths, "{product} of {lengths}");
            }
        }
    }
}

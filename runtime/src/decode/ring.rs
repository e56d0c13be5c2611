//! Rings of keys and values of one graph of a bundle, as another has them ([`dijiang_format::ring`]).

use crate::session::error::{RuntimeError, bad_call};
use crate::session::tensor::HostTensor;
use dijiang_format::names::StatePart;
use dijiang_format::ring::{COUNT, counted_slots, parts, whole};

/// A state by its name.
pub(crate) type Named = (String, HostTensor);

/// The states that a graph names, with their shapes and in its order, where the found ones are those or make them and
/// nothing is left over. Otherwise they stay as they are, for a check of them to refuse.
pub(crate) fn arranged(
    found: Vec<Named>,
    wanted: &[(String, Vec<usize>)],
) -> Result<Vec<Named>, RuntimeError> {
    if !found.iter().all(|(name, _)| is_read(name, wanted)) {
        return Ok(found);
    }
    let mut all = Vec::new();
    for (name, shape) in wanted {
        let tensor = match by_name(&found, name) {
            Some(tensor) => Some(tensor.clone()),
            None => made(&found, wanted, (name, shape))?,
        };
        all.extend(tensor.map(|tensor| (name.clone(), tensor)));
    }
    Ok(if all.len() == wanted.len() { all } else { found })
}

/// Whether a graph has this state, or has it otherwise.
fn is_read(name: &str, wanted: &[(String, Vec<usize>)]) -> bool {
    let has = |name: &str| wanted.iter().any(|(wanted, _)| wanted == name);
    let of_its_layer = |part: StatePart, other: StatePart| {
        let layer = name.strip_suffix(part.name());
        layer.is_some_and(|layer| has(&format!("{layer}{}", other.name())))
    };
    has(name)
        || of_its_layer(StatePart::Normalizer, StatePart::RingKeys)
        || of_its_layer(StatePart::RingKeys, StatePart::Normalizer)
        || of_its_layer(StatePart::RingValues, StatePart::Normalizer)
        || counted_slots(name).is_some()
}

fn by_name<'a>(found: &'a [Named], name: &str) -> Option<&'a HostTensor> {
    found.iter().find(|(found, _)| found == name).map(|(_, tensor)| tensor)
}

/// The packed ring of a layer, and its shape.
fn packed_of<'a>(found: &'a [Named], layer: &str) -> Option<(&'a HostTensor, [usize; 3])> {
    let ring = by_name(found, &format!("{layer}{}", StatePart::Normalizer.name()))?;
    Some((ring, ring.shape().try_into().ok()?))
}

/// A state of other states.
fn made(
    found: &[Named],
    wanted: &[(String, Vec<usize>)],
    (name, shape): (&str, &[usize]),
) -> Result<Option<HostTensor>, RuntimeError> {
    if let Some(slots) = counted_slots(name) {
        return count(found, wanted, slots as usize);
    }
    let layer = |part: StatePart| Some(name.strip_suffix(part.name())?.to_owned());
    if let Some(layer) = layer(StatePart::RingKeys) {
        return part(found, &layer, |_| 0, shape);
    }
    if let Some(layer) = layer(StatePart::RingValues) {
        let size = shape.iter().skip(2).product::<usize>();
        return part(found, &layer, |width| width.saturating_sub(COUNT + size), shape);
    }
    match layer(StatePart::Normalizer) {
        Some(layer) => packed(found, &layer),
        None => Ok(None),
    }
}

/// So many numbers of each head of a packed ring, from where `start` says by their number.
fn part(
    found: &[Named],
    layer: &str,
    start: impl Fn(usize) -> usize,
    shape: &[usize],
) -> Result<Option<HostTensor>, RuntimeError> {
    let Some((ring, [batch, heads, width])) = packed_of(found, layer) else { return Ok(None) };
    let size = shape.iter().skip(2).product::<usize>();
    let start = start(width);
    if shape.get(..2) != Some(&[batch, heads]) || start + size > width {
        return Ok(None);
    }
    let part = ring.slice(2, start, start + size)?;
    Ok(Some(HostTensor::new(part.dtype(), shape.to_vec(), part.into_bytes())?))
}

/// The count of the rings of so many slots.
fn count(
    found: &[Named],
    wanted: &[(String, Vec<usize>)],
    slots: usize,
) -> Result<Option<HostTensor>, RuntimeError> {
    let has_slots = |(name, shape): &&(String, Vec<usize>)| {
        StatePart::RingKeys.is_past(name) && shape.get(2) == Some(&slots)
    };
    let Some((keys, _)) = wanted.iter().find(has_slots) else { return Ok(None) };
    let layer = keys.strip_suffix(StatePart::RingKeys.name()).unwrap_or_default();
    let Some((ring, [batch, heads, width])) = packed_of(found, layer) else { return Ok(None) };
    if width < COUNT || heads == 0 {
        return Ok(None);
    }
    let counts = ring.slice(1, 0, 1)?.slice(2, width - COUNT, width)?.to_f32()?;
    let counts: Vec<f32> = counts.chunks_exact(COUNT).map(|both| whole([both[0], both[1]])).collect();
    Ok(Some(HostTensor::from_f32(&[batch, 1], &counts)?))
}

/// The ring of a layer as one state.
fn packed(found: &[Named], layer: &str) -> Result<Option<HostTensor>, RuntimeError> {
    let named = |part: StatePart| by_name(found, &format!("{layer}{}", part.name()));
    let Some((keys, values)) = named(StatePart::RingKeys).zip(named(StatePart::RingValues)) else {
        return Ok(None);
    };
    let [batch, heads, slots, _] = *keys.shape() else { return Ok(None) };
    let is_count = |(name, _): &&Named| counted_slots(name) == Some(slots as u64);
    let Some((_, counts)) = found.iter().find(is_count) else {
        return Err(bad_call(
            "state",
            format!("it holds {layer}{} and no count", StatePart::RingKeys.name()),
        ));
    };
    let counts =
        counts.to_f32()?.into_iter().flat_map(|count| parts(count).repeat(heads)).collect::<Vec<_>>();
    let counts = HostTensor::from_f32(&[batch, heads, COUNT], &counts)?.to_float(keys.dtype())?;
    let flat = |tensor: &HostTensor| -> Result<HostTensor, RuntimeError> {
        let width = tensor.shape().iter().skip(2).product();
        Ok(HostTensor::new(tensor.dtype(), vec![batch, heads, width], tensor.bytes().to_vec())?)
    };
    let (keys, values) = (flat(keys)?, flat(values)?);
    Ok(Some(HostTensor::concat(2, &[&keys, &values, &counts])?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dijiang_format::dtype::DType;
    use dijiang_format::names::PAST;

    fn numbers(shape: &[usize], from: usize) -> HostTensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|n| (from + n) as f32).collect();
        HostTensor::from_f32(shape, &values).expect("a tensor")
    }

    #[test]
    fn a_ring_is_taken_apart_and_put_together() {
        let name = |rest: &str| format!("{PAST}{rest}");
        let apart: Vec<Named> = vec![
            (name("0.ring_key"), numbers(&[2, 3, 5, 4], 0)),
            (name("0.ring_value"), numbers(&[2, 3, 5, 2], 500)),
            (name("ring.4.1.count"), HostTensor::from_f32(&[2, 1], &[7.0, 300.0]).expect("a tensor")),
            (name("1.recurrent_state"), numbers(&[2, 3, 4, 2], 900)),
        ];
        let wanted = |states: &[Named]| -> Vec<(String, Vec<usize>)> {
            states.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect()
        };
        let one = [(name("1.recurrent_state"), vec![2, 3, 4, 2]), (name("0.conv_state"), vec![2, 3, 32])];
        let packed = arranged(apart.clone(), &one).expect("it is put together");
        assert_eq!(wanted(&packed), one);
        let values = packed[1].1.to_f32().expect("floats");
        assert_eq!((values[0], values[20], &values[30..32]), (0.0, 500.0, &[0.0, 7.0][..]));
        assert_eq!((values[96], values[116], &values[126..128]), (60.0, 530.0, &[2.0, 44.0][..]));
        assert_eq!(arranged(packed, &wanted(&apart)).expect("it is taken apart"), apart);
        let half = HostTensor::zeros(DType::F16, &[2, 3, 33]).expect("a tensor");
        let half =
            vec![(name("0.conv_state"), half), (name("1.recurrent_state"), numbers(&[2, 3, 4, 2], 900))];
        let other = arranged(half.clone(), &wanted(&apart)).expect("no error");
        assert_eq!(other.len(), 4, "another width of each head is left to the check of shapes");
        let more = [half, vec![(name("2.conv_state"), numbers(&[1], 0))]].concat();
        assert_eq!(arranged(more.clone(), &wanted(&apart)).expect("no error"), more);
    }

    #[test]
    fn a_ring_without_its_count_is_refused() {
        let keys = (format!("{PAST}0.ring_key"), numbers(&[1, 1, 5, 4], 0));
        let values = (format!("{PAST}0.ring_value"), numbers(&[1, 1, 5, 4], 0));
        let wanted = [(format!("{PAST}0.conv_state"), vec![1, 1, 42])];
        let error = arranged(vec![keys, values], &wanted).expect_err("no count").to_string();
        assert_eq!(error, "state: it holds past_key_values.0.ring_key and no count");
    }
}

//! Rings of keys and values of one graph of a bundle, as another has them ([`dijiang_format::ring`]).

use crate::session::error::{RuntimeError, bad_call};
use crate::session::tensor::HostTensor;
use dijiang_format::dtype::DType;
use dijiang_format::recipe::Local;
use dijiang_format::ring::{
    COUNT, RingPart, RingState, count_name, packed_layer, packed_name, parts, unread_layer, values_name,
    whole,
};

/// A state by its name.
pub(crate) type Named = (String, HostTensor);

/// The states that a graph names, with their shapes and in its order, where the found ones are those or make them and
/// nothing is left over. Otherwise they stay as they are, for a check of them to refuse.
pub(crate) fn arranged(
    found: Vec<Named>,
    wanted: &[(String, Vec<usize>)],
) -> Result<Vec<Named>, RuntimeError> {
    let is_told = |(name, tensor): &Named| is_read(name, wanted) || is_unread((name, tensor.shape()), wanted);
    if !found.iter().all(is_told) {
        return Ok(found);
    }
    let mut all = Vec::new();
    for (name, shape) in wanted {
        let tensor = match by_name(&found, name) {
            Some(tensor) => Some(tensor.clone()),
            None => made(&found, wanted, (name, shape))?,
        };
        let tensor = tensor.map(|tensor| wrapped(name, tensor)).transpose()?;
        all.extend(tensor.map(|tensor| (name.clone(), tensor)));
    }
    Ok(if all.len() == wanted.len() { all } else { found })
}

/// A count of tokens as graphs keep it: what is beyond the filling of a ring by a window and more stands for what stands at
/// the same place. Other states stay.
fn wrapped(name: &str, tensor: HostTensor) -> Result<HostTensor, RuntimeError> {
    let Some(RingState { part: RingPart::Count, local, .. }) = RingState::of(name) else { return Ok(tensor) };
    let (window, sinks, slots) = (f64::from(local.window), f64::from(local.sinks), local.slots() as f64);
    let kept = |count: f32| match f64::from(count) {
        count if count >= slots + window => (slots + (count - sinks).rem_euclid(window)) as f32,
        _ => count,
    };
    let counts: Vec<f32> = tensor.to_f32()?.into_iter().map(kept).collect();
    Ok(HostTensor::from_f32(tensor.shape(), &counts)?)
}

/// Whether a graph has this state, or has it otherwise.
fn is_read(name: &str, wanted: &[(String, Vec<usize>)]) -> bool {
    let has = |name: &str| wanted.iter().any(|(wanted, _)| wanted == name);
    if has(name) {
        return true;
    }
    match (RingState::of(name), packed_layer(name)) {
        (Some(RingState { part: RingPart::Count, .. }), _) => true,
        (Some(RingState { layer, .. }), _) => has(&packed_name(layer)),
        (None, Some(layer)) => keys_of(wanted.iter().map(|(name, _)| name), layer).is_some(),
        (None, None) => false,
    }
}

/// Whether a state holds nothing, beside a ring that a graph has apart.
fn is_unread((name, shape): (&str, &[usize]), wanted: &[(String, Vec<usize>)]) -> bool {
    let holds_nothing = shape.len() == 4 && shape[1..] == [1, 1, 1];
    let layer = unread_layer(name).filter(|_| holds_nothing);
    layer.is_some_and(|layer| keys_of(wanted.iter().map(|(name, _)| name), layer).is_some())
}

/// Of the names of states, the keys of a layer's ring.
fn keys_of<'n>(mut names: impl Iterator<Item = &'n String>, layer: &str) -> Option<(&'n str, RingState<'n>)> {
    names.find_map(|name| {
        let state = RingState::of(name)?;
        (state.part == RingPart::Keys && state.layer == layer).then_some((name.as_str(), state))
    })
}

fn by_name<'a>(found: &'a [Named], name: &str) -> Option<&'a HostTensor> {
    found.iter().find(|(found, _)| found == name).map(|(_, tensor)| tensor)
}

/// The packed ring of a layer, and its shape.
fn packed_of<'a>(found: &'a [Named], layer: &str) -> Option<(&'a HostTensor, [usize; 3])> {
    let ring = by_name(found, &packed_name(layer))?;
    Some((ring, ring.shape().try_into().ok()?))
}

/// A state of other states.
fn made(
    found: &[Named],
    wanted: &[(String, Vec<usize>)],
    (name, shape): (&str, &[usize]),
) -> Result<Option<HostTensor>, RuntimeError> {
    let size = shape.iter().skip(2).product::<usize>();
    match (RingState::of(name), packed_layer(name)) {
        (Some(RingState { layer, part: RingPart::Keys, .. }), _) => part(found, layer, |_| 0, shape),
        (Some(RingState { layer, part: RingPart::Values, .. }), _) => {
            part(found, layer, |width| width.saturating_sub(COUNT + size), shape)
        }
        (Some(RingState { part: RingPart::Count, local, .. }), _) => count(found, wanted, local),
        (None, Some(layer)) => packed(found, layer),
        (None, None) => unread(found, (name, shape)),
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

/// The count of the rings that see this.
fn count(
    found: &[Named],
    wanted: &[(String, Vec<usize>)],
    local: Local,
) -> Result<Option<HostTensor>, RuntimeError> {
    let counted = |(name, _): &(String, Vec<usize>)| {
        let state = RingState::of(name)?;
        (state.part == RingPart::Keys && state.local == local).then(|| state.layer.to_owned())
    };
    let Some(layer) = wanted.iter().find_map(counted) else { return Ok(None) };
    let Some((ring, [batch, heads, width])) = packed_of(found, &layer) else { return Ok(None) };
    if width < COUNT || heads == 0 {
        return Ok(None);
    }
    let counts = ring.slice(1, 0, 1)?.slice(2, width - COUNT, width)?.to_f32()?;
    let counts: Vec<f32> = counts.chunks_exact(COUNT).map(|both| whole([both[0], both[1]])).collect();
    Ok(Some(HostTensor::from_f32(&[batch, 1], &counts)?))
}

/// The state that holds nothing, beside a ring that is there.
fn unread(found: &[Named], (name, shape): (&str, &[usize])) -> Result<Option<HostTensor>, RuntimeError> {
    let layer = unread_layer(name).filter(|_| shape.len() == 4 && shape[1..] == [1, 1, 1]);
    let has_ring = layer.is_some_and(|layer| keys_of(found.iter().map(|(name, _)| name), layer).is_some());
    Ok(if has_ring { Some(HostTensor::zeros(DType::F32, shape)?) } else { None })
}

/// The ring of a layer as one state.
fn packed(found: &[Named], layer: &str) -> Result<Option<HostTensor>, RuntimeError> {
    let Some((name, state)) = keys_of(found.iter().map(|(name, _)| name), layer) else { return Ok(None) };
    let values = by_name(found, &values_name(layer, state.local));
    let Some((keys, values)) = by_name(found, name).zip(values) else { return Ok(None) };
    let [batch, heads, _, _] = *keys.shape() else { return Ok(None) };
    let Some(counts) = by_name(found, &count_name(state.local)) else {
        return Err(bad_call("state", format!("it holds {name} and no {}", count_name(state.local))));
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
    use dijiang_format::names::PAST;

    fn numbers(shape: &[usize], from: usize) -> HostTensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|n| (from + n) as f32).collect();
        HostTensor::from_f32(shape, &values).expect("a tensor")
    }

    fn name(rest: &str) -> String {
        format!("{PAST}{rest}")
    }

    fn wanted(states: &[Named]) -> Vec<(String, Vec<usize>)> {
        states.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect()
    }

    #[test]
    fn a_ring_is_taken_apart_and_put_together() {
        let apart: Vec<Named> = vec![
            (name("0.ring_key.4.1"), numbers(&[2, 3, 5, 4], 0)),
            (name("0.ring_value.4.1"), numbers(&[2, 3, 5, 2], 500)),
            (name("ring.4.1.count"), HostTensor::from_f32(&[2, 1], &[7.0, 300.0]).expect("a tensor")),
            (name("1.recurrent_state"), numbers(&[2, 3, 4, 2], 900)),
        ];
        let one = [(name("1.recurrent_state"), vec![2, 3, 4, 2]), (name("0.conv_state"), vec![2, 3, 32])];
        let packed = arranged(apart.clone(), &one).expect("it is put together");
        assert_eq!(wanted(&packed), one);
        let values = packed[1].1.to_f32().expect("floats");
        assert_eq!((values[0], values[20], &values[30..32]), (0.0, 500.0, &[0.0, 7.0][..]));
        assert_eq!((values[96], values[116], &values[126..128]), (60.0, 530.0, &[2.0, 44.0][..]));
        let mut kept = apart.clone();
        // 300 stands where 8 does: the fourth place of a window after the first slot, which is filled.
        kept[2].1 = HostTensor::from_f32(&[2, 1], &[7.0, 8.0]).expect("a tensor");
        assert_eq!(arranged(packed, &wanted(&apart)).expect("it is taken apart"), kept);
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
        let keys = (name("0.ring_key.4.1"), numbers(&[1, 1, 5, 4], 0));
        let values = (name("0.ring_value.4.1"), numbers(&[1, 1, 5, 4], 0));
        let other = (name("ring.5.0.count"), numbers(&[1, 1], 0));
        let wanted = [(name("0.conv_state"), vec![1, 1, 42])];
        let error = arranged(vec![keys, values, other], &wanted).expect_err("no count").to_string();
        let expected = "state: it holds past_key_values.0.ring_key.4.1 and no past_key_values.ring.4.1.count";
        assert_eq!(error, expected);
    }

    /// Of a layer that is a window alone a packed state has one that holds nothing beside it.
    #[test]
    fn what_holds_nothing_comes_and_goes() {
        let apart: Vec<Named> = vec![
            (name("0.ring_key.5.0"), numbers(&[1, 2, 5, 4], 200)),
            (name("0.ring_value.5.0"), numbers(&[1, 2, 5, 4], 300)),
            (name("ring.5.0.count"), HostTensor::from_f32(&[1, 1], &[7.0]).expect("a tensor")),
        ];
        let one = [(name("0.recurrent_state"), vec![1, 1, 1, 1]), (name("0.conv_state"), vec![1, 2, 42])];
        let packed = arranged(apart.clone(), &one).expect("it is put together");
        assert_eq!(wanted(&packed), one);
        assert_eq!(arranged(packed.clone(), &wanted(&apart)).expect("it is taken apart"), apart);
        let full: Vec<Named> = packed
            .into_iter()
            .map(|(name, tensor)| match unread_layer(&name) {
                Some(_) => (name, numbers(&[1, 2, 4, 4], 0)),
                None => (name, tensor),
            })
            .collect();
        assert_eq!(arranged(full.clone(), &wanted(&apart)).expect("no error"), full, "nothing is lost");
    }

    /// Of two layers with five slots each, one has a sink: their counts differ from the sixth token on.
    #[test]
    fn rings_of_as_many_slots_have_their_own_counts() {
        let apart: Vec<Named> = vec![
            (name("0.ring_key.4.1"), numbers(&[1, 2, 5, 4], 0)),
            (name("0.ring_value.4.1"), numbers(&[1, 2, 5, 4], 100)),
            (name("ring.4.1.count"), HostTensor::from_f32(&[1, 1], &[6.0]).expect("a tensor")),
            (name("1.ring_key.5.0"), numbers(&[1, 2, 5, 4], 200)),
            (name("1.ring_value.5.0"), numbers(&[1, 2, 5, 4], 300)),
            (name("ring.5.0.count"), HostTensor::from_f32(&[1, 1], &[7.0]).expect("a tensor")),
        ];
        let one = [(name("0.conv_state"), vec![1, 2, 42]), (name("1.conv_state"), vec![1, 2, 42])];
        let packed = arranged(apart.clone(), &one).expect("they are put together");
        let last = |at: usize| packed[at].1.to_f32().expect("floats")[40..42].to_vec();
        assert_eq!([last(0), last(1)], [[0.0, 6.0], [0.0, 7.0]]);
        assert_eq!(arranged(packed, &wanted(&apart)).expect("they are taken apart"), apart);
    }
}

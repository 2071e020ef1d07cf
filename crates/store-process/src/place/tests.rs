//! What every place keeps to.

use super::*;

/// Goes through all of it. The place may have other resources.
pub(crate) fn keeps_to_the_contract(place: &impl Place) {
    entries_change_as_they_were_read(place);
    all_entries_are_listed(place);
    headers_change_as_they_were_read(place);
    claims_go_with_headers(place);
    the_last_who_lets_go_of_a_layer_takes_it_along(place);
}

fn entries_change_as_they_were_read(place: &impl Place) {
    let id = Uuid::new_v4();
    let changed = |from, to| place.set_entry(id, from, to);
    let refused = |from, to| matches!(changed(from, to), Err(PlaceError::Changed(_)));
    assert!(refused(Some("old"), Some("new")), "there is none");
    changed(None, Some("first")).unwrap();
    assert!(refused(None, Some("another")));
    assert!(refused(Some("other"), None));
    changed(Some("first"), Some("second")).unwrap();
    assert!(refused(Some("first"), Some("third")));
    changed(Some("second"), None).unwrap();
    assert!(refused(Some("second"), None));
    changed(None, None).unwrap();
}

fn all_entries_are_listed(place: &impl Place) {
    let mut ids: Vec<_> = (0..MAX_LISTED + 7).map(|_| Uuid::new_v4()).collect();
    for id in &ids {
        place
            .set_entry(*id, None, Some(&format!("entry of {id}")))
            .unwrap();
    }
    ids.sort();
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let some = place.resources(after).unwrap();
        assert!(some.len() <= MAX_LISTED);
        let Some((last, _)) = some.last() else {
            break;
        };
        after = Some(*last);
        found.extend(some);
    }
    found.retain(|(id, _)| ids.contains(id));
    assert!(found.iter().map(|(id, _)| *id).eq(ids));
    for (id, entry) in found {
        assert_eq!(entry, format!("entry of {id}"));
        place.set_entry(id, Some(&entry), None).unwrap();
    }
}

fn headers_change_as_they_were_read(place: &impl Place) {
    let id = Uuid::new_v4();
    let header = |byte| vec![byte; MAX_HEADER_LEN];
    assert_eq!(place.header(id).unwrap(), None);
    let missing = place.replace_header(id, &header(1), &header(2));
    assert!(matches!(
        missing,
        Err(PlaceError::Missing(_) | PlaceError::Changed(_))
    ));
    place.create_header(id, &header(1)).unwrap();
    let there = place.create_header(id, &header(2));
    assert!(matches!(there, Err(PlaceError::There(_))));
    place.replace_header(id, &header(1), &header(2)).unwrap();
    let stale = place.replace_header(id, &header(1), &header(3));
    assert!(matches!(stale, Err(PlaceError::Changed(_))));
    assert_eq!(place.header(id).unwrap(), Some(header(2)));
    place.remove_header(id).unwrap();
    place.remove_header(id).unwrap();
    assert_eq!(place.header(id).unwrap(), None);
}

fn claims_go_with_headers(place: &impl Place) {
    let id = Uuid::new_v4();
    let missing = place.set_claim(id, None, Some("host a"));
    assert!(matches!(missing, Err(PlaceError::Missing(_))));
    place.create_header(id, &[1; 512]).unwrap();
    assert_eq!(place.claim(id).unwrap(), None);
    place.set_claim(id, None, Some("host a")).unwrap();
    let taken = place.set_claim(id, None, Some("host b"));
    assert!(matches!(taken, Err(PlaceError::Changed(_))));
    place.set_claim(id, Some("host a"), Some("host b")).unwrap();
    assert_eq!(place.claim(id).unwrap().as_deref(), Some("host b"));
    // It is of the resource, whatever its header says.
    place.replace_header(id, &[1; 512], &[2; 512]).unwrap();
    assert_eq!(place.claim(id).unwrap().as_deref(), Some("host b"));
    place.set_claim(id, Some("host b"), None).unwrap();
    place.set_claim(id, None, Some("host c")).unwrap();
    place.remove_header(id).unwrap();
    place.create_header(id, &[1; 512]).unwrap();
    assert_eq!(place.claim(id).unwrap(), None);
    place.remove_header(id).unwrap();
}

fn the_last_who_lets_go_of_a_layer_takes_it_along(place: &impl Place) {
    let layer = Uuid::new_v4();
    let [first, second, third] = [0; 3].map(|_| Uuid::new_v4());
    assert!(place.holders(layer).unwrap().is_empty());
    assert!(matches!(
        place.hold(layer, first),
        Err(PlaceError::Missing(_))
    ));
    assert!(matches!(
        place.grow_layer(layer, 1 << 20),
        Err(PlaceError::Missing(_))
    ));
    let new = NewLayer {
        layer,
        holder: first,
        map_start: &[7; 4096],
        data_len: 1 << 20,
    };
    place.create_layer(new).unwrap();
    assert!(matches!(place.create_layer(new), Err(PlaceError::There(_))));
    place.grow_layer(layer, 2 << 20).unwrap();
    place.grow_layer(layer, 1 << 20).unwrap();
    place.hold(layer, second).unwrap();
    place.hold(layer, second).unwrap();
    assert_eq!(place.holders(layer).unwrap().len(), 2);
    assert!(!place.let_go(layer, third).unwrap(), "it has not had it");
    assert!(!place.let_go(layer, first).unwrap());
    assert!(!place.let_go(layer, first).unwrap());
    assert_eq!(place.holders(layer).unwrap(), [second]);
    assert!(place.let_go(layer, second).unwrap());
    assert!(place.holders(layer).unwrap().is_empty());
    assert!(matches!(
        place.hold(layer, first),
        Err(PlaceError::Missing(_))
    ));
    assert!(place.let_go(layer, second).unwrap());
}

#[test]
fn memory_keeps_to_the_contract() {
    keeps_to_the_contract(&MemoryPlace::default());
}

/// A place that is asked by messages.
struct ByMessages(MemoryPlace);

impl Asked for ByMessages {
    fn ask_place(
        &self,
        command: PlaceCommand,
        bytes: &[u8],
    ) -> Result<(PlaceAnswer, Vec<u8>), PlaceError> {
        let text = serde_json::to_string(&command).unwrap();
        let (answer, bytes) = obey(&self.0, serde_json::from_str(&text).unwrap(), bytes);
        let text = serde_json::to_string(&answer).unwrap();
        Ok((serde_json::from_str(&text).unwrap(), bytes))
    }
}

#[test]
fn a_place_that_is_asked_by_messages_keeps_to_the_contract() {
    let asked = ByMessages(MemoryPlace::default());
    keeps_to_the_contract(&RemotePlace(&asked));
    let place = RemotePlace(&asked);
    let (id, long) = (Uuid::new_v4(), "x".repeat(MAX_TEXT_LEN + 1));
    assert!(place.set_entry(id, None, Some(&long)).is_err());
    assert!(place.set_entry(id, None, Some("")).is_err());
    place.create_header(id, &[1; 100]).unwrap();
    assert!(place.replace_header(id, &[1; 100], &[2; 99]).is_err());
}

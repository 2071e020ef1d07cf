//! What a place is asked for, as messages, and what it answers.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{MAX_HEADER_LEN, MAX_TEXT_LEN, NewLayer, Place, PlaceError};

/// A call of [`Place`]. Bytes of headers and maps follow the message.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum PlaceCommand {
    Resources {
        after: Option<Uuid>,
    },
    SetEntry {
        resource: Uuid,
        from: Option<String>,
        to: Option<String>,
    },
    Header {
        resource: Uuid,
    },
    CreateHeader {
        resource: Uuid,
    },
    ReplaceHeader {
        resource: Uuid,
        /// How many of the bytes are of the old one; the rest are of the new one.
        old: usize,
    },
    RemoveHeader {
        resource: Uuid,
    },
    Claim {
        resource: Uuid,
    },
    SetClaim {
        resource: Uuid,
        from: Option<String>,
        to: Option<String>,
    },
    CreateLayer {
        layer: Uuid,
        holder: Uuid,
        data_len: u64,
    },
    GrowLayer {
        layer: Uuid,
        data_len: u64,
    },
    Hold {
        layer: Uuid,
        holder: Uuid,
    },
    LetGo {
        layer: Uuid,
        holder: Uuid,
    },
    Holders {
        layer: Uuid,
    },
}

/// What it gives back.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum PlaceAnswer {
    Done,
    Resources(Vec<(Uuid, String)>),
    /// Whether there is a header, which follows.
    Header(bool),
    Claim(Option<String>),
    Gone(bool),
    Holders(Vec<Uuid>),
    Refused(PlaceError),
}

/// Makes a call of a place; what follows the answer too.
pub(crate) fn obey(
    place: &impl Place,
    command: PlaceCommand,
    bytes: &[u8],
) -> (PlaceAnswer, Vec<u8>) {
    match call(place, command, bytes) {
        Ok(answer) => answer,
        Err(error) => (PlaceAnswer::Refused(error), Vec::new()),
    }
}

fn call(
    place: &impl Place,
    command: PlaceCommand,
    bytes: &[u8],
) -> Result<(PlaceAnswer, Vec<u8>), PlaceError> {
    let answer = match command {
        PlaceCommand::Resources { after } => PlaceAnswer::Resources(place.resources(after)?),
        PlaceCommand::SetEntry { resource, from, to } => {
            place.set_entry(resource, from.as_deref(), short(to.as_deref())?)?;
            PlaceAnswer::Done
        }
        PlaceCommand::Header { resource } => {
            let header = place.header(resource)?;
            let answer = PlaceAnswer::Header(header.is_some());
            return Ok((answer, header.unwrap_or_default()));
        }
        PlaceCommand::CreateHeader { resource } => {
            place.create_header(resource, bytes)?;
            PlaceAnswer::Done
        }
        PlaceCommand::ReplaceHeader { resource, old } => {
            let halves = bytes.split_at_checked(old);
            let too_few = || PlaceError::Failed("a header is cut off".into());
            let (from, to) = halves.ok_or_else(too_few)?;
            if from.len() != to.len() || to.len() > MAX_HEADER_LEN {
                return Err(PlaceError::Failed("a header is of another length".into()));
            }
            place.replace_header(resource, from, to)?;
            PlaceAnswer::Done
        }
        PlaceCommand::RemoveHeader { resource } => {
            place.remove_header(resource)?;
            PlaceAnswer::Done
        }
        PlaceCommand::Claim { resource } => PlaceAnswer::Claim(place.claim(resource)?),
        PlaceCommand::SetClaim { resource, from, to } => {
            place.set_claim(resource, from.as_deref(), short(to.as_deref())?)?;
            PlaceAnswer::Done
        }
        PlaceCommand::CreateLayer {
            layer,
            holder,
            data_len,
        } => {
            place.create_layer(NewLayer {
                layer,
                holder,
                map_start: bytes,
                data_len,
            })?;
            PlaceAnswer::Done
        }
        PlaceCommand::GrowLayer { layer, data_len } => {
            place.grow_layer(layer, data_len)?;
            PlaceAnswer::Done
        }
        PlaceCommand::Hold { layer, holder } => {
            place.hold(layer, holder)?;
            PlaceAnswer::Done
        }
        PlaceCommand::LetGo { layer, holder } => PlaceAnswer::Gone(place.let_go(layer, holder)?),
        PlaceCommand::Holders { layer } => PlaceAnswer::Holders(place.holders(layer)?),
    };
    Ok((answer, Vec::new()))
}

/// A text that can be listed with others.
fn short(text: Option<&str>) -> Result<Option<&str>, PlaceError> {
    match text {
        Some(text) if text.len() > MAX_TEXT_LEN => Err(PlaceError::Failed(format!(
            "an entry of {} bytes is too long",
            text.len()
        ))),
        // Nothing says that there is none.
        Some("") => Err(PlaceError::Failed("an entry is empty".into())),
        text => Ok(text),
    }
}

/// Somebody who can be asked.
pub(crate) trait Asked {
    /// Asks, and waits for the answer, and what follows it.
    fn ask_place(
        &self,
        command: PlaceCommand,
        bytes: &[u8],
    ) -> Result<(PlaceAnswer, Vec<u8>), PlaceError>;
}

/// The place of somebody who is asked for each call.
pub(crate) struct RemotePlace<'a, A>(pub(crate) &'a A);

impl<A: Asked> RemotePlace<'_, A> {
    fn ask(
        &self,
        command: PlaceCommand,
        bytes: &[u8],
    ) -> Result<(PlaceAnswer, Vec<u8>), PlaceError> {
        match self.0.ask_place(command, bytes)? {
            (PlaceAnswer::Refused(error), _) => Err(error),
            answer => Ok(answer),
        }
    }

    fn done(&self, command: PlaceCommand, bytes: &[u8]) -> Result<(), PlaceError> {
        match self.ask(command, bytes)? {
            (PlaceAnswer::Done, _) => Ok(()),
            other => Err(unasked(&other.0)),
        }
    }
}

fn unasked(answer: &PlaceAnswer) -> PlaceError {
    PlaceError::Failed(format!("{answer:?} is the answer to something else"))
}

impl<A: Asked> Place for RemotePlace<'_, A> {
    fn resources(&self, after: Option<Uuid>) -> Result<Vec<(Uuid, String)>, PlaceError> {
        match self.ask(PlaceCommand::Resources { after }, &[])?.0 {
            PlaceAnswer::Resources(some) => Ok(some),
            other => Err(unasked(&other)),
        }
    }

    fn set_entry(
        &self,
        resource: Uuid,
        from: Option<&str>,
        to: Option<&str>,
    ) -> Result<(), PlaceError> {
        let [from, to] = [from, to].map(|text| text.map(str::to_owned));
        self.done(PlaceCommand::SetEntry { resource, from, to }, &[])
    }

    fn header(&self, resource: Uuid) -> Result<Option<Vec<u8>>, PlaceError> {
        match self.ask(PlaceCommand::Header { resource }, &[])? {
            (PlaceAnswer::Header(is_there), bytes) => Ok(is_there.then_some(bytes)),
            (other, _) => Err(unasked(&other)),
        }
    }

    fn create_header(&self, resource: Uuid, header: &[u8]) -> Result<(), PlaceError> {
        self.done(PlaceCommand::CreateHeader { resource }, header)
    }

    fn replace_header(&self, resource: Uuid, from: &[u8], to: &[u8]) -> Result<(), PlaceError> {
        let old = from.len();
        self.done(
            PlaceCommand::ReplaceHeader { resource, old },
            &[from, to].concat(),
        )
    }

    fn remove_header(&self, resource: Uuid) -> Result<(), PlaceError> {
        self.done(PlaceCommand::RemoveHeader { resource }, &[])
    }

    fn claim(&self, resource: Uuid) -> Result<Option<String>, PlaceError> {
        match self.ask(PlaceCommand::Claim { resource }, &[])?.0 {
            PlaceAnswer::Claim(claim) => Ok(claim),
            other => Err(unasked(&other)),
        }
    }

    fn set_claim(
        &self,
        resource: Uuid,
        from: Option<&str>,
        to: Option<&str>,
    ) -> Result<(), PlaceError> {
        let [from, to] = [from, to].map(|text| text.map(str::to_owned));
        self.done(PlaceCommand::SetClaim { resource, from, to }, &[])
    }

    fn create_layer(&self, new: NewLayer<'_>) -> Result<(), PlaceError> {
        let NewLayer {
            layer,
            holder,
            map_start,
            data_len,
        } = new;
        let command = PlaceCommand::CreateLayer {
            layer,
            holder,
            data_len,
        };
        self.done(command, map_start)
    }

    fn grow_layer(&self, layer: Uuid, data_len: u64) -> Result<(), PlaceError> {
        self.done(PlaceCommand::GrowLayer { layer, data_len }, &[])
    }

    fn hold(&self, layer: Uuid, holder: Uuid) -> Result<(), PlaceError> {
        self.done(PlaceCommand::Hold { layer, holder }, &[])
    }

    fn let_go(&self, layer: Uuid, holder: Uuid) -> Result<bool, PlaceError> {
        match self.ask(PlaceCommand::LetGo { layer, holder }, &[])?.0 {
            PlaceAnswer::Gone(is_gone) => Ok(is_gone),
            other => Err(unasked(&other)),
        }
    }

    fn holders(&self, layer: Uuid) -> Result<Vec<Uuid>, PlaceError> {
        match self.ask(PlaceCommand::Holders { layer }, &[])?.0 {
            PlaceAnswer::Holders(holders) => Ok(holders),
            other => Err(unasked(&other)),
        }
    }
}

//! The identity key of the slot, as the peers' wire asks for it.

use hsm::Slot;
use peers::SignError;

/// Signs the handshakes of this node. The private half stays in the slot.
#[derive(Debug)]
pub struct SlotIdentity {
    slot: Slot,
    spki: Vec<u8>,
}

impl SlotIdentity {
    /// `spki` is what the slot's `node_keys` answered for this node.
    pub fn new(slot: Slot, spki: Vec<u8>) -> Self {
        Self { slot, spki }
    }
}

impl peers::Identity for SlotIdentity {
    fn spki(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        self.slot.sign_blocking(message).map_err(|error| SignError(error.to_string()))
    }
}

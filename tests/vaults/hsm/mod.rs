//! Vaults whose private keys are in a token behind PKCS#11, on SoftHSM 2.

mod faults;
mod keys;
mod served;
mod token;
mod workflow;

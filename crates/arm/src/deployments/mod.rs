//! `Microsoft.Resources/deployments`: templates that are deployed to a resource group.
//!
//! A deployment is an [operation](crate::operations) that makes the resources of its template one after the other, each
//! by a request of whoever deploys: what they may not do themselves no template does for them. After a restart of the
//! server it goes on: a resource that is made is read, and the one that was being made is put again. Values of secure
//! parameters and signatures of URLs of access are kept nowhere, so that a deployment with such ends with the server.

mod differences;
mod environment;
mod prepare;
mod requests;
mod run;
mod secrets;
mod shown;
mod views;
mod what_if;

pub use requests::{answer, are, are_words, is_one};
pub use run::Deployment;

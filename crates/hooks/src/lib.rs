//! The contract between the server and its extensions: what a module may see, say and change.

pub mod bench;
pub mod card;
pub mod module;
pub mod passage;
pub mod registry;
pub mod services;
pub mod session;
pub mod verdict;

pub use card::{Card, Status, Xep};
pub use module::{
    Addressee, Answering, Arriving, Awaiting, Bearer, Binding, Delivering, Following, Forgetting, Greeting,
    Holding, Issued, Leaving, Module, Moving, NotUsed, Offer, Offering, SessionEvent, Speaking, Stranger,
    Token, Use, Vouching, Why,
};
pub use passage::{Passage, Underway};
pub use registry::{Clash, Hooks, Registry, Step, Switches};
pub use services::{About, Hold, How, Kept, Removal, Repeated, Resource, Services};
pub use session::{Full, Notes, SessionView, Sid};
pub use verdict::{Answer, Reply, Verdict};
// What `Services` speaks of, so that who implements it needs no other crate.
pub use store::{
    AccountError, AccountState, Accounts, Credentials, Partition, ScramKeys, Store, StoreError, Stored, Table,
};

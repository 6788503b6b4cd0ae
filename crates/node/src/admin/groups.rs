//! Groups of contacts that operators keep, as they list and change them.

use proto::admin;
use store::Store;
use tonic::Status;
use xeps::groups::{self, Change, Group, GroupError, Groups, Listed};

use super::service::store_error;

/// What the calls need.
pub struct Kept {
    /// The settings of the module, and where it is on.
    pub groups: Groups,
    /// Where they are kept.
    pub store: Store,
    /// The domains that this server serves.
    pub hosts: Vec<String>,
}

impl Kept {
    /// The groups of one host, or of all that may have some.
    pub async fn list(&self, host: &str) -> Result<admin::ListGroupsResponse, Status> {
        let hosts: Vec<&str> = match host {
            "" => self.hosts.iter().map(String::as_str).filter(|host| self.groups.are_on(host)).collect(),
            host => vec![self.host(host)?],
        };
        if hosts.is_empty() {
            return Err(is_off());
        }
        let mut all = Vec::new();
        for host in hosts {
            let listed = groups::list(&self.store, self.groups.config(), host).await.map_err(store_error)?;
            all.extend(listed.into_iter().map(|Listed { name, group, configured }| {
                let members = group.members.into_iter().collect();
                let (host, everyone) = (host.to_owned(), group.everyone);
                admin::list_groups_response::Group { host, name, members, everyone, configured }
            }));
        }
        Ok(admin::ListGroupsResponse { groups: all })
    }

    /// Adds to a group or takes out of it.
    pub async fn change(
        &self,
        request: admin::ChangeGroupRequest,
    ) -> Result<admin::ChangeGroupResponse, Status> {
        let admin::ChangeGroupRequest { host, name, members, everyone, remove } = request;
        let host = self.host(&host)?;
        let member = |text: &String| {
            let wrong = || Status::invalid_argument(format!("`{text}` is no account of `{host}`"));
            groups::member(host, text).ok_or_else(wrong)
        };
        let members: Result<_, Status> = members.iter().map(member).collect();
        let group = Group { members: members?, everyone };
        if group == Group::default() {
            return Err(Status::invalid_argument("nobody was named"));
        }
        let change = if remove { Change::Remove(group) } else { Change::Add(group) };
        let Group { members, everyone } = self.apply(host, &name, &change).await?;
        Ok(admin::ChangeGroupResponse { members: members.into_iter().collect(), everyone })
    }

    /// Ends a group.
    pub async fn delete(&self, host: &str, name: &str) -> Result<admin::DeleteGroupResponse, Status> {
        self.apply(self.host(host)?, name, &Change::Delete).await?;
        Ok(admin::DeleteGroupResponse {})
    }

    async fn apply(&self, host: &str, name: &str, change: &Change) -> Result<Group, Status> {
        let changed = groups::change(&self.store, self.groups.config(), (host, name), change).await;
        changed.map_err(|error| match error {
            GroupError::NotFound => {
                Status::not_found(format!("no such group at `{host}`, or the config keeps it: `{name}`"))
            }
            GroupError::TooMany(text) => Status::resource_exhausted(text),
            GroupError::BadName => {
                Status::invalid_argument("a group has a name of 1 to 1023 bytes without control characters")
            }
            GroupError::Store(error) => store_error(error),
        })
    }

    /// A host of this server that may have groups.
    fn host<'a>(&self, host: &'a str) -> Result<&'a str, Status> {
        if !self.hosts.iter().any(|ours| ours == host) {
            let hosts = self.hosts.join(", ");
            return Err(Status::invalid_argument(format!("`{host}` is not one of the hosts: {hosts}")));
        }
        if !self.groups.are_on(host) {
            return Err(is_off());
        }
        Ok(host)
    }
}

fn is_off() -> Status {
    Status::failed_precondition(
        "the module `shared_groups` is not on there: `enabled = true` in [modules.shared_groups] of every node",
    )
}

//! How a module says which keys its `[modules.NAME]` table has, and how a value gets there.

use toml_edit::Value;

/// One key of a `[modules.NAME]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub module: &'static str,
    pub name: &'static str,
    /// The default, as it is written in TOML.
    pub default: String,
    /// What a value must be, for an error message.
    pub expected: &'static str,
    /// What it means, in one sentence.
    pub sentence: &'static str,
}

/// Why a key of a `[modules.NAME]` table was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// No module has this name.
    UnknownModule,
    /// The module has no such key.
    UnknownKey,
    /// The value is not what the key wants.
    NotA { expected: &'static str },
}

/// A type that a key can have.
pub trait Setting: Sized {
    const EXPECTED: &'static str;
    fn read(value: &Value) -> Option<Self>;
    /// As it is written in TOML.
    fn write(&self) -> String;
}

impl Setting for usize {
    const EXPECTED: &'static str = "a whole number of at least 1";

    fn read(value: &Value) -> Option<usize> {
        usize::try_from(value.as_integer()?).ok().filter(|number| *number >= 1)
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl Setting for bool {
    const EXPECTED: &'static str = "`true` or `false`";

    fn read(value: &Value) -> Option<bool> {
        value.as_bool()
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl Setting for Vec<String> {
    const EXPECTED: &'static str = "a list of domain names, as in [\"example.org\"]";

    fn read(value: &Value) -> Option<Vec<String>> {
        value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
    }

    fn write(&self) -> String {
        let names: Vec<String> = self.iter().map(|name| format!("{name:?}")).collect();
        format!("[{}]", names.join(", "))
    }
}

/// What every module's settings can do; made by [`settings!`](crate::settings!).
pub trait Settings {
    fn keys(&self, module: &'static str) -> Vec<Key>;
    fn set(&mut self, name: &str, value: &Value) -> Result<(), Wrong>;
}

/// Declares the settings of a module: a struct with a default and a sentence for each key.
#[macro_export]
macro_rules! settings {
    ($(#[$doc:meta])* $visibility:vis struct $name:ident {
        $($(#[doc = $sentence:literal])+ $key:ident: $type:ty = $default:expr,)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        $visibility struct $name { $($(#[doc = $sentence])+ pub $key: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }

        impl $crate::settings::Settings for $name {
            #[allow(unused_variables)]
            fn keys(&self, module: &'static str) -> Vec<$crate::settings::Key> {
                vec![$($crate::settings::Key {
                    module,
                    name: stringify!($key),
                    default: <$type as $crate::settings::Setting>::write(&self.$key),
                    expected: <$type as $crate::settings::Setting>::EXPECTED,
                    sentence: concat!($($sentence),+).trim_ascii(),
                },)*]
            }

            #[allow(unused_variables)]
            fn set(&mut self, name: &str, value: &toml_edit::Value) -> Result<(), $crate::settings::Wrong> {
                match name {
                    $(stringify!($key) => {
                        let expected = <$type as $crate::settings::Setting>::EXPECTED;
                        self.$key = <$type as $crate::settings::Setting>::read(value)
                            .ok_or($crate::settings::Wrong::NotA { expected })?;
                        Ok(())
                    })*
                    _ => Err($crate::settings::Wrong::UnknownKey),
                }
            }
        }
    };
}

impl<S: Settings> Settings for &mut S {
    fn keys(&self, module: &'static str) -> Vec<Key> {
        (**self).keys(module)
    }

    fn set(&mut self, name: &str, value: &Value) -> Result<(), Wrong> {
        (**self).set(name, value)
    }
}

use std::fmt;
use std::str::FromStr;

/// Largest number of a GPU that is accepted, exclusive.
const MAX_ORDINAL: usize = 1 << 10;

/// Where engines run. Written `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// Where they are for.
    #[default]
    Auto,
    /// On the processor.
    Cpu,
    /// On the GPU of that number, from 0.
    Cuda(usize),
}

impl Device {
    /// The number of the GPU, or of the first one.
    pub(crate) fn ordinal(self) -> usize {
        match self {
            Device::Cuda(ordinal) => ordinal,
            Device::Auto | Device::Cpu => 0,
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let ordinal = |text: &str| text.parse().ok().filter(|n: &usize| *n < MAX_ORDINAL);
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            text => {
                let ordinal = text.strip_prefix("cuda:").and_then(ordinal);
                ordinal.map(Device::Cuda).ok_or_else(|| "expected auto, cpu, cuda or cuda:N".into())
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.pad("auto"),
            Device::Cpu => f.pad("cpu"),
            Device::Cuda(ordinal) => f.pad(&format!("cuda:{ordinal}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_it_is_written() {
        for (text, device) in [("auto", Device::Auto), ("cpu", Device::Cpu), ("cuda:3", Device::Cuda(3))] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:1024", "cpu:0"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}

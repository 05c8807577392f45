"""Where Panel's server meets the package."""

"""The painter of the demo's street pictures: outside the wheel, which ships what it drew."""

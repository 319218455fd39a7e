"""The native sources as packaged data, and the module that compiles them."""

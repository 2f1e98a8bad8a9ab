"""The Gradio app: one file per tab, one for state, one for theme. Law: it holds no logic that the library lacks."""

"""A page in the browser for trained models; `page.build_page` is all of it, the other files know nothing of Gradio."""

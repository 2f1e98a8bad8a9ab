// The only script of the page: a drawing that is to be kept "as PNG" is painted at twice its size and offered under its name.
document.addEventListener("click", (event) => {
  const link = event.target instanceof Element ? event.target.closest("a.as-png") : null;
  if (!link || link.href.startsWith("data:image/png")) return;
  event.preventDefault();
  const picture = new Image();
  picture.onload = () => {
    const canvas = document.createElement("canvas");
    canvas.width = 2 * picture.naturalWidth;
    canvas.height = 2 * picture.naturalHeight;
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    const kept = document.createElement("a");
    kept.href = canvas.toDataURL("image/png");
    kept.download = link.download;
    kept.click();
  };
  picture.src = link.href;
});

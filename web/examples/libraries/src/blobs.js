// What pages make of blobs by themselves.
import Worker from "./worker.js?worker&inline";

const root = document.querySelector("#root");
const image = new Image();
image.src = URL.createObjectURL(new Blob(['<svg xmlns="http://www.w3.org/2000/svg" width="7" height="7"/>'], { type: "image/svg+xml" }));
image.onload = () => {
  const worker = new Worker();
  worker.onmessage = ({ data }) => (root.textContent = `${image.width} ${data}`);
  worker.postMessage(20);
};

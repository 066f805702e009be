import { useState } from "react";

/** An upload with its progress, which fetch does not report. XMLHttpRequest needs the header itself. */
export function Upload() {
  const [progress, setProgress] = useState(0);
  const [result, setResult] = useState("");
  function upload(file) {
    const request = new XMLHttpRequest();
    request.open("PUT", "/api/photo");
    request.setRequestHeader("X-CSRF", "1");
    request.upload.onprogress = ({ loaded, total }) => setProgress(loaded / total);
    request.onload = () => setResult(request.status === 200 ? `${JSON.parse(request.response).bytes} bytes uploaded` : `Failed: ${request.status}`);
    request.onerror = () => setResult("The upload failed.");
    request.send(file);
  }
  return (
    <section>
      <h2>Upload</h2>
      <label>
        Photo of the coat <input type="file" onChange={(event) => upload(event.target.files[0])} />
      </label>
      <label>
        Progress <progress max="1" value={progress} />
      </label>
      <p>{result}</p>
    </section>
  );
}

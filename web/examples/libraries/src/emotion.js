import { css, Global } from "@emotion/react";
import styled from "@emotion/styled";
import { createElement as element, useState } from "react";
import { createRoot } from "react-dom/client";

const Button = styled.button(({ on }) => ({ color: on ? "rgb(0, 0, 128)" : "rgb(128, 0, 0)" }));

function App() {
  const [on, setOn] = useState(false);
  return element(
    "main",
    null,
    element(Global, { styles: css({ body: { backgroundColor: "rgb(250, 250, 240)" } }) }),
    element(Button, { on, onClick: () => setOn(true) }, "Switch"),
  );
}

createRoot(document.querySelector("#root")).render(element(App));

import { Button, Dialog, DialogTitle, TextField, ThemeProvider, createTheme } from "@mui/material";
import { createElement as element, useState } from "react";
import { createRoot } from "react-dom/client";

const theme = createTheme({ palette: { primary: { main: "rgb(0, 100, 0)" } } });

function App() {
  const [open, setOpen] = useState(false);
  return element(
    ThemeProvider,
    { theme },
    element(TextField, { label: "Name" }),
    element(Button, { variant: "contained", onClick: () => setOpen(true) }, "Open"),
    element(Dialog, { open, onClose: () => setOpen(false) }, element(DialogTitle, null, "A dialog")),
  );
}

createRoot(document.querySelector("#root")).render(element(App));

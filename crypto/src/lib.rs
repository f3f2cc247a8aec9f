//! Secret types, wrapped-blob and ciphertext formats, algorithms
